//! The kind `PolicyTest`.

use std::collections::HashMap;

use tenon_proto::tcs::v1::TenantContext;

use super::{
    Draft, REGION,
    document::{or_default, region_name},
    forms::LABEL,
};
use crate::{
    mesh::{Expect, PolicyTest, REASONS, TestCall, TestTransaction},
    names::{DocumentName, short},
    tenant::{self, Wrong},
    yaml::{
        self, At, Form, Map, Node, Reader,
        shape::{optional, required},
        suggestion,
    },
};

pub(super) fn read(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<PolicyTest> {
    let fields = reader.fields(spec, &POLICY_TEST)?;
    let tenants = or_default(reader, fields, "tenants", Vec::new(), |reader, node| tenants(reader, node, draft));
    let calls = fields.required(reader, "calls", "a list of calls").and_then(|node| {
        let nodes = reader.some_list(node, "calls")?;
        let calls: Vec<TestCall> = nodes.iter().filter_map(|node| call(reader, node, draft)).collect();
        (calls.len() == nodes.len()).then_some(calls)
    });
    Some(PolicyTest { name, tenants: tenants?, calls: calls? })
}

fn tenants(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<Vec<TenantContext>> {
    let mut ids: HashMap<String, At> = HashMap::new();
    let nodes = reader.list(node, "tenant contexts")?;
    let mut tenants = Vec::with_capacity(nodes.len());
    for node in nodes {
        let tenant: TenantContext = match yaml::from_node(node) {
            Ok(tenant) => tenant,
            Err(error) => {
                let misfits = tenant::misfits(node);
                if misfits.is_empty() {
                    reader.problem(error.at.unwrap_or(node.at), tenant::not_json(&error.message));
                }
                misfits.into_iter().for_each(|(at, message)| reader.problem(at, tenant::not_json(&message)));
                continue;
            }
        };
        let wrong = tenant::wrong(&tenant);
        if !wrong.is_empty() {
            for Wrong { path, message } in wrong {
                reader.problem(tenant::place(node, &path).unwrap_or(node.at), message);
            }
            continue;
        }
        match ids.insert(tenant.tenant_id.clone(), node.at) {
            Some(At { line, column }) => {
                let id = &tenant.tenant_id;
                reader.problem(
                    node.at,
                    format!("tenant {id:?} stands twice, expected it once: the first is at {line}:{column}"),
                );
            }
            None => {
                if let (false, Some(at)) = (tenant.region.is_empty(), tenant::place(node, &["region".to_owned()])) {
                    draft.refer(reader, REGION, &tenant.region, at);
                }
                tenants.push(tenant);
            }
        }
    }
    (tenants.len() == nodes.len()).then_some(tenants)
}

pub(super) static POLICY_TEST: Map = Map {
    what: "the spec of a PolicyTest",
    fields: &[
        optional(
            "tenants",
            Form::List(&Form::Map(&tenant::TENANT)),
            "The tenants that there are: tenon.tcs.v1.TenantContext in proto3 JSON. Default: none.",
        ),
        required("calls", Form::Some(&Form::Map(&CALL)), "What must come of each of these calls."),
    ],
};

static CALL: Map = Map {
    what: "a call",
    fields: &[
        required("caller", LABEL, "The calling service or ExternalClient; need not be defined."),
        required("service", LABEL, "The called service; need not be defined."),
        required("path", Form::Like("^/"), "The gRPC path: /package.Service/Method."),
        optional("tenant", Form::Text, "The tenant that it names, as an app would."),
        optional("region", LABEL, "The region of the called instance. Default: the tenant's home."),
        optional("transaction", Form::Map(&TRANSACTION), "The valid transaction token that it carries."),
        required("expect", Form::Choice(|| expectations().collect()), "ALLOWED, or the reason of a refusal."),
    ],
};

static TRANSACTION: Map = Map {
    what: "a transaction token",
    fields: &[optional("tenant", Form::Text, "The tenant that the token is of. Default: none.")],
};

fn call(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<TestCall> {
    let fields = reader.fields(node, &CALL)?;
    let caller = fields.required(reader, "caller", "a service name");
    let caller = caller.and_then(|node| reader.parsed(node, "a service name"));
    let service = fields.required(reader, "service", "a service name");
    let service = service.and_then(|node| reader.parsed(node, "a service name"));
    let path = fields.required(reader, "path", "a gRPC path").and_then(|node| path(reader, node));
    let tenant = or_default(reader, fields, "tenant", None, |reader, node| {
        Some(Some(reader.text(node, "a tenant id")?.to_owned()))
    });
    let region = or_default(reader, fields, "region", None, |reader, node| region_name(reader, node, draft).map(Some));
    let transaction = or_default(reader, fields, "transaction", None, |reader, node| {
        let fields = reader.fields(node, &TRANSACTION)?;
        let tenant = or_default(reader, fields, "tenant", None, |reader, node| {
            Some(Some(reader.text(node, "the tenant of the token")?.to_owned()))
        });
        Some(Some(TestTransaction { tenant: tenant? }))
    });
    let expect = fields.required(reader, "expect", EXPECT).and_then(|node| expect(reader, node));
    let source = format!("{}:{}:{}", reader.file(), node.at.line, node.at.column);
    Some(TestCall {
        caller: caller?,
        service: service?,
        path: path?,
        tenant: tenant?,
        region: region?,
        transaction: transaction?,
        expect: expect?,
        source,
    })
}

fn path(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let text = reader.form(node, "a gRPC path")?;
    if text.starts_with('/') {
        return Some(text.to_owned());
    }
    reader.problem(node.at, format!("path {:?} is not well formed, expected /package.Service/Method", short(text)));
    None
}

const EXPECT: &str = "ALLOWED or the reason of a refusal, as TENANT_UNKNOWN";

fn expectations() -> impl Iterator<Item = &'static str> {
    ["ALLOWED"].into_iter().chain(REASONS.iter().copied())
}

fn expect(reader: &mut Reader<'_>, node: &Node) -> Option<Expect> {
    let text = reader.form(node, EXPECT)?;
    if text == "ALLOWED" {
        return Some(Expect::Allowed);
    }
    if REASONS.contains(&text) {
        return Some(Expect::Refused(text.to_owned()));
    }
    let hint = suggestion(text, expectations());
    reader.problem(node.at, format!("found text {:?}{hint}, expected {EXPECT}", short(text)));
    None
}
