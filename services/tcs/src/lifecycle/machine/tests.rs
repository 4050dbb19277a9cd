use proptest::prelude::*;
use tenon_proto::tcs::v1::{
    AbandonMove, ActivateProduct, DeactivateProduct, DestroyProduct, DestroyTenant, Shard, SuspendProduct,
    SuspendTenant, UnsuspendProduct, UnsuspendTenant,
};

use super::*;

const TENANTS: [TenantState; 5] = [T::Absent, T::Active, T::Suspended, T::Moving, T::MovingSuspended];
const PRODUCTS: [ProductState; 4] = [P::Absent, P::Inactive, P::Active, P::Suspended];

fn now() -> Timestamp {
    Timestamp { seconds: 1_000, nanos: 0 }
}

/// One event of each kind; of products, of this one.
fn change(event: Event, product: &str) -> Change {
    let product = product.to_owned();
    match event {
        E::CreateTenant => Change::CreateTenant(CreateTenant {
            hosts: vec!["acme.example".to_owned()],
            region: "us-east".to_owned(),
            ..CreateTenant::default()
        }),
        E::DestroyTenant => Change::DestroyTenant(DestroyTenant {}),
        E::SuspendTenant => Change::SuspendTenant(SuspendTenant {}),
        E::UnsuspendTenant => Change::UnsuspendTenant(UnsuspendTenant {}),
        E::CreateProduct => Change::CreateProduct(CreateProduct { product, seats: 5, ..CreateProduct::default() }),
        E::DestroyProduct => Change::DestroyProduct(DestroyProduct { product }),
        E::ActivateProduct => Change::ActivateProduct(ActivateProduct { product }),
        E::DeactivateProduct => Change::DeactivateProduct(DeactivateProduct { product }),
        E::SuspendProduct => Change::SuspendProduct(SuspendProduct { product }),
        E::UnsuspendProduct => Change::UnsuspendProduct(UnsuspendProduct { product }),
        E::UpdateLicense => Change::UpdateLicense(UpdateLicense { product, seats: 9, ..UpdateLicense::default() }),
        E::BeginMove => Change::BeginMove(BeginMove { to_region: "eu-west".to_owned() }),
        E::FinishMove => Change::FinishMove(FinishMove::default()),
        E::AbandonMove => Change::AbandonMove(AbandonMove {}),
    }
}

/// A tenant in a state, with one product in a state.
fn tenant(state: TenantState, product: ProductState) -> Option<TenantContext> {
    let mut tenant = created("acme", CreateTenant { region: "us-east".to_owned(), ..CreateTenant::default() });
    match state {
        T::Absent => return None,
        T::Active | T::Moving => tenant.set_status(Status::Active),
        T::Suspended | T::MovingSuspended => tenant.set_status(Status::Suspended),
    }
    if matches!(state, T::Moving | T::MovingSuspended) {
        tenant.r#move = Some(Move { to_region: "eu-west".to_owned(), started_at: Some(now()) });
    }
    if product != P::Absent {
        tenant.products.insert("media".to_owned(), Product::default());
        enter(&mut tenant, "media", product);
    }
    Some(tenant)
}

fn apply_one(tenant: Option<TenantContext>, event: Event) -> Result<Option<TenantContext>, Refused> {
    apply("acme", tenant, &change(event, "media"), now())
}

#[test]
fn every_event_has_one_row_and_every_row_leads_somewhere() {
    for (place, row) in TABLE.iter().enumerate() {
        assert_eq!(Event::of(&change(row.event, "media")), row.event);
        assert!(!row.tenant.is_empty());
        assert_eq!(row.product.is_empty(), product_of(&change(row.event, "media")).is_none(), "{}", row.event);
        assert!(TABLE[..place].iter().all(|other| other.event != row.event), "{} stands twice", row.event);
        let once = |from| row.tenant.iter().filter(|(state, _)| *state == from).count() <= 1;
        assert!(TENANTS.into_iter().all(once), "{}", row.event);
    }
}

/// Each state with each event: what the table says is what becomes of the record, and nothing else.
#[test]
fn each_event_in_each_state_does_what_the_table_says_or_is_refused_with_what_would_be_legal() {
    for (state, product) in TENANTS.into_iter().flat_map(|state| PRODUCTS.map(|product| (state, product))) {
        for row in &TABLE {
            let product_event = !row.product.is_empty();
            let before = tenant(state, product);
            let product = if before.is_none() { P::Absent } else { product };
            match (row.step(state, Some(product)), apply_one(before.clone(), row.event)) {
                (Some((to, product_to)), Ok(after)) => {
                    assert_eq!(TenantState::of(after.as_ref()), to, "{} from {state}", row.event);
                    let held = after.as_ref().and_then(|after| after.products.get("media"));
                    let expected = if after.is_none() { P::Absent } else { product_to.unwrap_or(product) };
                    assert_eq!(ProductState::of(held), expected, "{} from {state}/{product}", row.event);
                }
                (None, Err(Refused::Illegal { event, tenant, product: named, legal })) => {
                    assert_eq!((event, tenant), (row.event, state));
                    assert_eq!(named.is_some(), product_event && before.is_some());
                    assert!(!legal.contains(&event));
                    assert!(!legal.is_empty(), "{state}: something is always legal");
                    for event in legal {
                        assert!(apply_one(before.clone(), event).is_ok(), "{event} from {state}/{product}");
                    }
                }
                (step, outcome) => panic!("{} from {state}/{product}: {step:?}, {outcome:?}", row.event),
            }
        }
    }
}

#[test]
fn a_refusal_names_the_state_and_what_would_be_legal() {
    let refused = apply_one(tenant(T::Active, P::Active), E::UnsuspendProduct).unwrap_err().to_string();
    assert_eq!(
        refused,
        "UnsuspendProduct is illegal: the tenant is ACTIVE, its product media is ACTIVE; legal would be DestroyTenant, \
         SuspendTenant, BeginMove, DestroyProduct, DeactivateProduct, SuspendProduct, UpdateLicense"
    );
    let refused = apply_one(None, E::SuspendTenant).unwrap_err().to_string();
    assert_eq!(refused, "SuspendTenant is illegal: the tenant is absent; legal would be CreateTenant");
}

#[test]
fn a_move_makes_the_other_region_home_and_gives_new_shards() {
    let shard = |cluster: &str| Shard { cluster: cluster.to_owned(), ..Shard::default() };
    let mut before = tenant(T::Active, P::Active).unwrap();
    before.products.get_mut("media").unwrap().shard = Some(shard("old"));
    let moving = apply_one(Some(before.clone()), E::BeginMove).unwrap().unwrap();
    assert_eq!(moving.r#move, Some(Move { to_region: "eu-west".to_owned(), started_at: Some(now()) }));
    assert_eq!(moving.region, "us-east", "home until the move is finished");

    let finish = |name: &str| Change::FinishMove(FinishMove { shards: [(name.to_owned(), shard("new"))].into() });
    let moved = apply("acme", Some(moving.clone()), &finish("media"), now()).unwrap().unwrap();
    assert_eq!((moved.region.as_str(), &moved.r#move), ("eu-west", &None));
    assert_eq!(moved.products["media"].shard, Some(shard("new")));
    let unknown = apply("acme", Some(moving.clone()), &finish("wiki"), now());
    assert!(matches!(unknown, Err(Refused::Misfit(why)) if why.contains("no product \"wiki\"")));

    assert_eq!(apply_one(Some(moving), E::AbandonMove).unwrap().unwrap(), before);
    let nowhere = Change::BeginMove(BeginMove { to_region: "us-east".to_owned() });
    assert!(matches!(apply("acme", Some(before.clone()), &nowhere, now()), Err(Refused::Misfit(_))));
    let odd = Change::BeginMove(BeginMove { to_region: "US".to_owned() });
    assert!(matches!(apply("acme", Some(before), &odd, now()), Err(Refused::Invalid(_))));
}

#[test]
fn a_licence_is_replaced_and_the_rest_of_the_product_kept() {
    let mut before = tenant(T::Suspended, P::Suspended).unwrap();
    before.products.get_mut("media").unwrap().shard = Some(Shard::default());
    before.products.get_mut("media").unwrap().edition = "gold".to_owned();
    let product = apply_one(Some(before), E::UpdateLicense).unwrap().unwrap().products["media"].clone();
    assert_eq!((product.seats, product.edition.as_str(), product.state()), (9, "", product::State::Suspended));
    assert!(product.shard.is_some());
}

#[test]
fn what_would_be_no_tenant_is_refused_with_all_that_is_wrong() {
    let create = CreateTenant { hosts: vec!["A".to_owned()], region: "U".to_owned(), ..CreateTenant::default() };
    let refused = apply("acme", None, &Change::CreateTenant(create), now());
    assert!(matches!(refused, Err(Refused::Invalid(problems)) if problems.len() == 2));
    let refused = apply("acme", tenant(T::Active, P::Absent), &change(E::CreateProduct, "Not A Name"), now());
    assert!(matches!(refused, Err(Refused::Invalid(_))));
}

proptest! {
    /// However events come, the record is one that may be written, and a refused event leaves it as it was.
    #[test]
    fn no_path_leads_to_an_illegal_state(
        steps in prop::collection::vec((0..TABLE.len(), prop::sample::select(vec!["media", "wiki"])), 0..60)
    ) {
        let mut held: Option<TenantContext> = None;
        for (step, product) in steps {
            let event = TABLE[step].event;
            let before = TenantState::of(held.as_ref());
            let product_before = ProductState::of(held.as_ref().and_then(|held| held.products.get(product)));
            match apply("acme", held.clone(), &change(event, product), now()) {
                Ok(after) => {
                    prop_assert!(legal(before, Some(product_before)).contains(&event));
                    if let Some(after) = &after {
                        prop_assert_eq!(mesh_config::tenant::check(after), Ok(()));
                    }
                    held = after;
                }
                Err(Refused::Illegal { legal: named, .. }) => prop_assert!(!named.contains(&event)),
                // Moving to where it is.
                Err(Refused::Misfit(_)) => prop_assert_eq!(event, E::BeginMove),
                Err(Refused::Invalid(problems)) => prop_assert!(false, "{:?}", problems),
            }
        }
    }
}

/// The tables of docs/tcs.md.
fn markdown() -> String {
    let mut text = String::from("| event | no tenant | ACTIVE | SUSPENDED | ACTIVE, moving | SUSPENDED, moving |\n");
    text += "| --- | --- | --- | --- | --- | --- |\n";
    let cell = |to: Option<String>| to.unwrap_or_else(|| "–".to_owned());
    for row in &TABLE {
        let to = |from: TenantState| row.tenant.iter().find(|(state, _)| *state == from).map(|(_, to)| *to);
        let shown = |from| match to(from) {
            Some(T::Absent) => Some("no tenant".to_owned()),
            Some(state) if !row.product.is_empty() && state == from => Some("by its product".to_owned()),
            other => other.map(|state| state.to_string()),
        };
        let cells: Vec<String> = TENANTS.into_iter().map(|from| cell(shown(from))).collect();
        text += &format!("| `{}` | {} |\n", row.event, cells.join(" | "));
    }
    text += "\n| event | no product | INACTIVE | ACTIVE | SUSPENDED |\n| --- | --- | --- | --- | --- |\n";
    for row in TABLE.iter().filter(|row| !row.product.is_empty()) {
        let to = |from: ProductState| row.product.iter().find(|(state, _)| *state == from).map(|(_, to)| *to);
        let shown = |from| match to(from) {
            Some(P::Absent) => Some("no product".to_owned()),
            other => other.map(|state| state.to_string()),
        };
        let cells: Vec<String> = PRODUCTS.into_iter().map(|from| cell(shown(from))).collect();
        text += &format!("| `{}` | {} |\n", row.event, cells.join(" | "));
    }
    text
}

#[test]
fn the_document_has_the_table_as_it_is() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/tcs.md");
    let text = std::fs::read_to_string(document).unwrap();
    let table = markdown();
    assert!(text.contains(&table), "docs/tcs.md, section Lifecycle, should have:\n\n{table}");
}
