//! Which sidecars begin a rollout.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use tenon_proto::policy::v1::RolloutPlan;

/// A connected sidecar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sidecar {
    pub service: String,
    /// Name of its process.
    pub instance: String,
    /// It was called lately: only such a one shows what a policy refuses.
    pub called: bool,
}

/// Why nobody can begin.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum ChoiceError {
    #[error("{0} % of the sidecars are to begin, expected more than 0 and at most 100")]
    Percent(f64),
    #[error("unknown service {0:?}, expected one that the policy defines")]
    UnknownService(String),
    #[error("the policy of service {0:?} does not change, so its sidecars have nothing to try")]
    UntouchedService(String),
    #[error("nobody to try it on: no sidecar whose policy changes is connected here; apply without --canary")]
    Nobody,
}

/// The canaries of a plan: so many percent of `touched` (the connected sidecars whose policy changes, each once), rounded
/// down and at least one, of the plan's services.
///
/// Each service has one before any has two, those whose sidecars are called first, then those of most instances; then each
/// gets its share. Within a service those that are called come first. Between what is alike the hash of `seed` and the name
/// decides: the same plan on the same mesh chooses the same, the next one others.
pub(crate) fn choose(touched: &[Sidecar], plan: &RolloutPlan, seed: &[u8]) -> Result<Vec<Sidecar>, ChoiceError> {
    let wanted = wanted(touched.len(), plan.canary_percent);
    let rank = |name: &str| -> [u8; 32] {
        let hash = digest(&SHA256, &[seed, &[0], name.as_bytes()].concat());
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    };
    let mut services: BTreeMap<&str, Vec<&Sidecar>> = BTreeMap::new();
    for sidecar in touched.iter().filter(|it| plan.services.is_empty() || plan.services.contains(&it.service)) {
        services.entry(&sidecar.service).or_default().push(sidecar);
    }
    let mut services: Vec<(usize, Vec<&Sidecar>)> = services.into_values().map(|all| (0, all)).collect();
    services.sort_by_cached_key(|(_, all)| rank(&all[0].service));
    services
        .iter_mut()
        .for_each(|(_, all)| all.sort_by_cached_key(|sidecar| (!sidecar.called, rank(&sidecar.instance))));
    let mut chosen = Vec::new();
    while chosen.len() < wanted {
        // Compared as fractions, without dividing: the first one of each, then whoever has the smallest share after it.
        let left = services.iter_mut().filter(|(taken, all)| *taken < all.len());
        let next = left.min_by(|(a, of_a), (b, of_b)| {
            let idle = (!of_a[*a].called).cmp(&!of_b[*b].called);
            let shares = ((a + 1) * of_b.len()).cmp(&((b + 1) * of_a.len()));
            (*a > 0).cmp(&(*b > 0)).then(idle).then(shares)
        });
        let Some((taken, all)) = next else { break };
        chosen.push(all[*taken].clone());
        *taken += 1;
    }
    if chosen.is_empty() {
        return Err(ChoiceError::Nobody);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// What can be said of a plan before anybody is looked at. `defined`: the services of either policy; `changed`: those whose
/// record changes.
pub(crate) fn check(plan: &RolloutPlan, defined: &[&str], changed: &[&str]) -> Result<(), ChoiceError> {
    if !(plan.canary_percent > 0.0 && plan.canary_percent <= 100.0) {
        return Err(ChoiceError::Percent(plan.canary_percent));
    }
    for service in &plan.services {
        if !defined.contains(&service.as_str()) {
            return Err(ChoiceError::UnknownService(service.clone()));
        }
        if !changed.contains(&service.as_str()) && !changed.is_empty() {
            return Err(ChoiceError::UntouchedService(service.clone()));
        }
    }
    Ok(())
}

/// Percent of `count`, rounded down, at least one. A product that is whole but for the error of binary fractions is whole.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "clamped")]
fn wanted(count: usize, percent: f64) -> usize {
    let share = percent.clamp(0.0, 100.0) * count as f64 / 100.0;
    ((share + 1e-9).floor() as usize).clamp(1, count.max(1))
}

#[cfg(test)]
mod tests;
