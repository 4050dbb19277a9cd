//! Which tenants a rule is for, and whether that fits the rule's service.

use super::{
    Draft, Place,
    allowlist::each,
    document::{or_default, region_name, word},
    forms::{LABEL, WORD},
    problem,
};
use crate::{
    Problem,
    mesh::Tenants,
    names::{ProductName, ServiceName},
    yaml::{
        Entry, Form, Map, Node, Reader,
        shape::{optional, required},
        suggestion,
    },
};

pub(super) static TENANTS: Map = Map {
    what: "the tenants of a rule",
    fields: &[
        optional(
            "products",
            Form::SomeNames(&LABEL, &Form::Map(&PRODUCT)),
            "Conditions on the product of the service, by its name: it alone is known of a tenant there.",
        ),
        optional("features", Form::Set(&WORD), "The tenant's product has every one of these features."),
        optional("regions", Form::Set(&LABEL), "The tenant's home is one of these regions of the Mesh."),
        optional("ids", Form::Set(&LABEL), "The tenant is one of these."),
    ],
};

static PRODUCT: Map = Map {
    what: "the conditions on a product",
    fields: &[required("editions", Form::Set(&WORD), "The tenant has one of these editions.")],
};

/// What a rule says of a product. The service that has it may be defined in a file that is read later.
pub(super) struct Narrowed {
    service: ServiceName,
    /// The product as it is named; `None`: whichever is the service's.
    product: Option<ProductName>,
    place: Place,
}

pub(super) fn read(
    reader: &mut Reader<'_>,
    node: &Node,
    service: Option<&ServiceName>,
    draft: &mut Draft,
) -> Option<Tenants> {
    let fields = reader.some_fields(node, &TENANTS)?;
    let place = |reader: &Reader<'_>, at| Place { file: reader.file().to_owned(), at };
    let editions = or_default(reader, fields, "products", Vec::new(), |reader, node| {
        let mut editions = Vec::new();
        for Entry { key, at, value } in reader.some_names(node, "a map of the service's product to its editions")? {
            match (ProductName::try_from(key.as_str()), service) {
                (Ok(product), Some(service)) => {
                    let (service, product) = (service.clone(), Some(product));
                    draft.narrowed.push(Narrowed { service, product, place: place(reader, *at) });
                }
                (Ok(_), None) => {}
                (Err(error), _) => reader.problem(*at, error.to_string()),
            }
            editions.extend(product(reader, value)?);
        }
        Some(editions)
    });
    let features = or_default(reader, fields, "features", Vec::new(), |reader, node| {
        if let Some(service) = service.cloned() {
            draft.narrowed.push(Narrowed { service, product: None, place: place(reader, node.at) });
        }
        each(reader, node, "features", |reader, node| word(reader, node, "the name of a feature"))
    });
    let regions = or_default(reader, fields, "regions", Vec::new(), |reader, node| {
        each(reader, node, "region names", |reader, node| region_name(reader, node, draft))
    });
    let ids = or_default(reader, fields, "ids", Vec::new(), |reader, node| {
        each(reader, node, "tenant ids", |reader, node| reader.parsed(node, "a tenant id"))
    });
    Some(Tenants { editions: editions?, features: features?, regions: regions?, ids: ids? })
}

fn product(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let fields = reader.fields(node, &PRODUCT)?;
    let editions = fields.required(reader, "editions", "a list of editions")?;
    each(reader, editions, "editions", |reader, node| word(reader, node, "the name of an edition"))
}

impl Draft {
    /// A rule can only ask for what its service's sidecar sees of a tenant: the service's own product.
    pub(super) fn check_narrowed(&self, problems: &mut Vec<Problem>) {
        for Narrowed { service, product, place } in &self.narrowed {
            // A service that nobody defines, or not well, is a problem of its own.
            let Some(service) = self.services.get(service) else { continue };
            let message = match (&service.product, product) {
                (None, _) => format!(
                    "service {:?} has no product, expected a condition on regions or ids of tenants",
                    service.name.as_str()
                ),
                (Some(own), Some(product)) if own != product => format!(
                    "product {:?} is not that of service {:?}{}, expected {:?}: its sidecar sees no other product of a tenant",
                    product.as_str(),
                    service.name.as_str(),
                    suggestion(product.as_str(), [own.as_str()]),
                    own.as_str()
                ),
                (Some(_), _) => continue,
            };
            problems.push(problem(&place.file, place.at, message));
        }
    }
}
