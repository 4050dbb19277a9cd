use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn sidecars(counts: &[(&str, usize)]) -> Vec<Sidecar> {
    let of = |service: &str, number: usize| Sidecar {
        service: service.to_owned(),
        instance: format!("{service}-{number:016x}"),
        called: false,
    };
    counts.iter().flat_map(|(service, count)| (0..*count).map(|number| of(service, number))).collect()
}

fn plan(canary_percent: f64, services: &[&str]) -> RolloutPlan {
    let services = services.iter().map(|service| (*service).to_owned()).collect();
    RolloutPlan { canary_percent, hold_seconds: 60, services }
}

fn counts(chosen: &[Sidecar]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    chosen.iter().for_each(|sidecar| *counts.entry(sidecar.service.as_str()).or_default() += 1);
    counts
}

#[test]
fn the_share_is_rounded_down_and_never_nobody() {
    for (count, percent, expected) in [
        (20, 5.0, 1),
        (39, 5.0, 1),
        (40, 5.0, 2),
        (1, 5.0, 1),
        (3, 0.001, 1),
        (1_000, 5.1, 51),
        (1_000, 0.1, 1),
        (10, 99.9, 9),
        (10, 100.0, 10),
        (1_000, 28.999_999, 289),
    ] {
        assert_eq!(wanted(count, percent), expected, "{percent} % of {count}");
        assert_eq!(choose(&sidecars(&[("media", count)]), &plan(percent, &[]), b"1.7").unwrap().len(), expected);
    }
}

#[test]
fn each_service_has_one_before_any_has_two_and_the_large_ones_come_first() {
    let touched = sidecars(&[("issues", 2), ("media", 10), ("wiki", 28)]);
    for (percent, expected) in [
        (2.5, vec![("wiki", 1)]),
        (5.0, vec![("media", 1), ("wiki", 1)]),
        (7.5, vec![("issues", 1), ("media", 1), ("wiki", 1)]),
        (10.0, vec![("issues", 1), ("media", 1), ("wiki", 2)]),
        (25.0, vec![("issues", 1), ("media", 2), ("wiki", 7)]),
        (100.0, vec![("issues", 2), ("media", 10), ("wiki", 28)]),
    ] {
        let chosen = choose(&touched, &plan(percent, &[]), b"1.7").unwrap();
        assert_eq!(counts(&chosen), expected.into_iter().collect(), "{percent} %");
    }
}

#[test]
fn only_the_services_of_the_plan_have_canaries_but_the_share_is_of_all_who_are_touched() {
    let touched = sidecars(&[("issues", 2), ("media", 10), ("wiki", 28)]);
    let chosen = choose(&touched, &plan(25.0, &["media"]), b"1.7").unwrap();
    assert_eq!(counts(&chosen), [("media", 10)].into());
    let chosen = choose(&touched, &plan(25.0, &["media", "issues"]), b"1.7").unwrap();
    assert_eq!(counts(&chosen), [("issues", 1), ("media", 9)].into());
    assert_eq!(choose(&touched, &plan(25.0, &["billing"]), b"1.7"), Err(ChoiceError::Nobody));
    assert_eq!(choose(&[], &plan(25.0, &[]), b"1.7"), Err(ChoiceError::Nobody));
}

#[test]
fn another_rollout_chooses_others() {
    let touched = sidecars(&[("media", 100)]);
    let first = choose(&touched, &plan(5.0, &[]), b"1.7").unwrap();
    assert_eq!(choose(&touched, &plan(5.0, &[]), b"1.7").unwrap(), first);
    assert_ne!(choose(&touched, &plan(5.0, &[]), b"1.8").unwrap(), first);
}

#[test]
fn a_plan_names_a_share_and_services_that_change() {
    let defined = ["issues", "media", "wiki"];
    for percent in [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY] {
        let refused = check(&plan(percent, &[]), &defined, &["media"]);
        assert!(matches!(refused, Err(ChoiceError::Percent(_))), "{percent}");
    }
    assert_eq!(check(&plan(0.1, &["media"]), &defined, &["media", "wiki"]), Ok(()));
    let unknown = check(&plan(5.0, &["media", "meda"]), &defined, &["media"]);
    assert_eq!(unknown, Err(ChoiceError::UnknownService("meda".to_owned())));
    let untouched = check(&plan(5.0, &["issues"]), &defined, &["media"]);
    assert_eq!(untouched, Err(ChoiceError::UntouchedService("issues".to_owned())));
    assert_eq!(check(&plan(5.0, &["issues"]), &defined, &[]), Ok(()), "nothing changes: it is applied at once");
}

proptest! {
    #[test]
    fn any_choice_is_of_the_touched_each_once_as_many_as_wanted_whatever_their_order(
        sizes in prop::collection::vec(1..40_usize, 1..6), percent in 0.01..100.0_f64, turn in 0..100_usize
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let sizes: Vec<_> = names.into_iter().zip(sizes).collect();
        let mut touched = sidecars(&sizes);
        let chosen = choose(&touched, &plan(percent, &[]), b"seed").unwrap();
        prop_assert_eq!(chosen.len(), wanted(touched.len(), percent));
        prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        prop_assert!(chosen.iter().all(|sidecar| touched.contains(sidecar)));
        if chosen.len() >= sizes.len() {
            prop_assert_eq!(counts(&chosen).len(), sizes.len(), "nobody is left out");
        }
        let turn = turn % touched.len();
        touched.rotate_left(turn);
        prop_assert_eq!(choose(&touched, &plan(percent, &[]), b"seed").unwrap(), chosen);
    }
}

#[test]
fn those_that_are_called_come_before_those_that_would_show_nothing() {
    let mut touched = sidecars(&[("issues", 3), ("media", 10), ("wiki", 28)]);
    let called = ["media-0000000000000007", "issues-0000000000000001"];
    touched.iter_mut().for_each(|sidecar| sidecar.called = called.contains(&sidecar.instance.as_str()));
    for seed in [&b"1.7"[..], b"1.8", b"1.9"] {
        let one = choose(&touched, &plan(2.5, &[]), seed).unwrap();
        assert_eq!(one.iter().map(|it| it.instance.as_str()).collect::<Vec<_>>(), called[..1]);
        let three = choose(&touched, &plan(7.5, &[]), seed).unwrap();
        let chosen: BTreeSet<&str> = three.iter().map(|it| it.instance.as_str()).collect();
        assert!(called.iter().all(|name| chosen.contains(name)), "{chosen:?}");
        assert_eq!(counts(&three), [("issues", 1), ("media", 1), ("wiki", 1)].into());
    }
}
