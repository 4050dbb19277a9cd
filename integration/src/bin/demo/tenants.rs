//! A thousand tenants, the same ones each time.

use serde_json::{Value, json};

/// How many there are.
pub const COUNT: usize = 1_000;
const SEED: u64 = 0x7e17_0717;

/// Tenants that the demo calls by name, then as many others as make a thousand, over two regions.
pub fn all() -> Vec<Value> {
    let mut tenants = vec![
        tenant("acme", "us-east", 1),
        tenant("globex", "us-east", 1),
        tenant("rheinwerk", "eu-west", 2),
        with(tenant("asleep", "us-east", 1), "status", json!("SUSPENDED")),
        with(tenant("wiki-only", "us-east", 1), "products", json!({"wiki": product("wiki", 1, "free")})),
    ];
    let mut random = SplitMix(SEED);
    for number in tenants.len()..COUNT {
        let region = if random.below(2) == 0 { "us-east" } else { "eu-west" };
        let shard = random.below(8);
        let tenant = tenant(&format!("tenant-{number:04}"), region, shard);
        // One in fifty is suspended, as in life.
        let suspended = random.below(50) == 0;
        tenants.push(if suspended { with(tenant, "status", json!("SUSPENDED")) } else { tenant });
    }
    tenants
}

fn tenant(id: &str, region: &str, shard: u64) -> Value {
    json!({
        "tenantId": id,
        "status": "ACTIVE",
        "hosts": [format!("{id}.example.com")],
        "realm": if region == "eu-west" { "eu" } else { "us" },
        "region": region,
        "products": {
            "issues": product("issues", shard, "standard"),
            "media": product("media", shard, "standard"),
            "wiki": product("wiki", shard, "standard"),
        },
    })
}

fn product(name: &str, shard: u64, edition: &str) -> Value {
    json!({
        "state": "ACTIVE",
        "edition": edition,
        "seats": 25,
        "shard": {"cluster": format!("c{}", shard % 2), "database": format!("{name}-{shard}"), "schema": "main"},
    })
}

fn with(mut tenant: Value, field: &str, value: Value) -> Value {
    tenant[field] = value;
    tenant
}

/// Steele, Lea, Flood 2014: written out, so that no library's next version changes the tenants.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
