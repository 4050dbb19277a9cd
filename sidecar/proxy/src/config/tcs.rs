//! Which TCS replicas are followed, and how much of their map is held.

use std::{fmt, net::SocketAddr, str::FromStr};

use mesh_config::names::ZoneName;
use serde::Serialize;

/// How many parents are followed at once.
const PARENTS: usize = 2;
/// The smallest cache worth its name.
const SMALLEST_CACHE_BYTES: u64 = 1 << 20;

/// One replica of the TCS: `127.0.0.1:15020`, or with the zone that it runs in `a=127.0.0.1:15020`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct ReplicaAddress {
    /// Where it runs.
    pub zone: Option<ZoneName>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl FromStr for ReplicaAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (zone, address) = match text.split_once('=') {
            Some((zone, address)) => (Some(ZoneName::try_from(zone).map_err(|error| error.to_string())?), address),
            None => (None, text),
        };
        let address = address.parse().map_err(|_| "expected IP:PORT or ZONE=IP:PORT".to_owned())?;
        Ok(Self { zone, address })
    }
}

impl fmt::Display for ReplicaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(zone) = &self.zone {
            write!(f, "{zone}=")?;
        }
        self.address.fmt(f)
    }
}

impl From<ReplicaAddress> for String {
    fn from(address: ReplicaAddress) -> Self {
        address.to_string()
    }
}

/// Of all replicas the two that a sidecar in `here` follows: one in its own zone where there is one, and one in another
/// zone than the first, so that no zone takes both away. Where zones do not decide, the order does.
#[must_use]
pub fn parents(all: &[ReplicaAddress], here: Option<&ZoneName>) -> Vec<ReplicaAddress> {
    let near = all.iter().position(|tcs| here.is_some() && tcs.zone.as_ref() == here).unwrap_or(0);
    let Some(first) = all.get(near) else { return Vec::new() };
    let others = || all.iter().filter(|tcs| tcs.address != first.address);
    let second = others().find(|tcs| tcs.zone != first.zone).or_else(|| others().next());
    [Some(first), second].into_iter().flatten().take(PARENTS).cloned().collect()
}

/// How much of the map of tenants is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeldTenants {
    /// All of it.
    #[default]
    Full,
    /// What calls ask for, within this many bytes.
    OnDemand {
        /// The most that it takes of memory.
        cache_bytes: u64,
    },
}

impl HeldTenants {
    /// From `--tenants` and `--tenant-cache-bytes`.
    ///
    /// # Errors
    /// Names the option.
    pub(super) fn read(tenants: Option<&str>, cache_bytes: Option<&str>) -> Result<Self, String> {
        match (tenants.unwrap_or("full"), cache_bytes) {
            ("full", None) => Ok(Self::Full),
            ("full", Some(_)) => Err("--tenant-cache-bytes has no use without --tenants on-demand".to_owned()),
            ("on-demand", bytes) => {
                let text = bytes.unwrap_or("64MiB");
                let cache_bytes = size(text).filter(|bytes| *bytes >= SMALLEST_CACHE_BYTES);
                cache_bytes.map(|cache_bytes| Self::OnDemand { cache_bytes }).ok_or_else(|| {
                    format!("--tenant-cache-bytes {text}: expected a number of KiB, MiB or GiB, 1MiB at least: 64MiB")
                })
            }
            (other, _) => Err(format!("--tenants {other}: expected full or on-demand")),
        }
    }

    /// As the option is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::OnDemand { .. } => "on-demand",
        }
    }

    /// The bound of the cache, where there is one.
    #[must_use]
    pub const fn cache_bytes(self) -> Option<u64> {
        match self {
            Self::Full => None,
            Self::OnDemand { cache_bytes } => Some(cache_bytes),
        }
    }
}

/// A size with its unit.
pub(super) fn size(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| plain)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str]) -> Vec<ReplicaAddress> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn two_replicas_of_different_zones_are_followed_the_own_one_first() {
        for (given, here, expected) in [
            (&["10.0.0.1:1"][..], None, &["10.0.0.1:1"][..]),
            (&["10.0.0.1:1", "10.0.0.1:1"], None, &["10.0.0.1:1"]),
            (&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], Some("a"), &["10.0.0.1:1", "10.0.0.2:1"]),
            (&["a=10.0.0.1:1", "a=10.0.0.2:1", "b=10.0.0.3:1"], None, &["a=10.0.0.1:1", "b=10.0.0.3:1"]),
            (&["a=10.0.0.1:1", "a=10.0.0.2:1", "b=10.0.0.3:1"], Some("b"), &["b=10.0.0.3:1", "a=10.0.0.1:1"]),
            (&["a=10.0.0.1:1", "a=10.0.0.2:1"], Some("b"), &["a=10.0.0.1:1", "a=10.0.0.2:1"]),
        ] {
            let here = here.map(|zone: &str| ZoneName::try_from(zone).expect("a zone"));
            let chosen: Vec<String> = parents(&all(given), here.as_ref()).iter().map(ToString::to_string).collect();
            assert_eq!(chosen, expected, "{given:?} from {here:?}");
        }
    }

    #[test]
    fn an_address_may_have_a_zone_and_nothing_else() {
        for bad in ["", "localhost:1", "a=", "=10.0.0.1:1", "A=10.0.0.1:1", "a=b=10.0.0.1:1", "10.0.0.1"] {
            assert!(bad.parse::<ReplicaAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_cache_has_a_size_with_a_unit() {
        let read = |tenants, bytes| HeldTenants::read(tenants, bytes).ok().map(HeldTenants::cache_bytes);
        assert_eq!(read(None, None), Some(None));
        assert_eq!(read(Some("full"), None), Some(None));
        assert_eq!(read(Some("on-demand"), None), Some(Some(64 << 20)));
        assert_eq!(read(Some("on-demand"), Some("2GiB")), Some(Some(2 << 30)));
        for bad in ["64", "MiB", "1KiB", "64MB", "-1MiB", "+5MiB", "99999999999999999GiB"] {
            assert_eq!(read(Some("on-demand"), Some(bad)), None, "{bad}");
        }
        assert_eq!((read(Some("full"), Some("64MiB")), read(Some("some"), None)), (None, None));
    }
}
