//! A tenant context as it is stored, looked through without decoding it.
//!
//! What is taken out leaves all else as it stands, byte for byte: so the same record gives the same bytes, and a field that
//! this version does not know passes.

use bytes::Bytes;
use prost::encoding::{WireType, decode_key, decode_varint};

/// Field numbers of tcs.proto.
mod field {
    pub(super) const HOSTS: u32 = 4;
    pub(super) const PRODUCTS: u32 = 7;
    /// Of an entry of a map.
    pub(super) const KEY: u32 = 1;
}

/// The record does not decode.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// One field of a message.
struct Field<'v> {
    number: u32,
    /// All of it, with number and length.
    whole: &'v [u8],
    /// What a field of text, bytes or a message holds; empty for others.
    content: &'v [u8],
}

/// The record without the products other than `product`.
pub(super) fn with_product(value: &Bytes, product: &str) -> Result<Bytes, Damaged> {
    let mut shown: Option<Vec<u8>> = None;
    let mut rest: &[u8] = value;
    while !rest.is_empty() {
        let before = value.len() - rest.len();
        let field = next(&mut rest)?;
        if field.number == field::PRODUCTS && key(field.content)? != product.as_bytes() {
            shown.get_or_insert_with(|| {
                let mut shown = Vec::with_capacity(value.len());
                shown.extend_from_slice(&value[..before]);
                shown
            });
        } else if let Some(shown) = &mut shown {
            shown.extend_from_slice(field.whole);
        }
    }
    Ok(shown.map_or_else(|| value.clone(), |shown| Bytes::from(shown.into_boxed_slice())))
}

/// The hosts of a record, as far as it can be read.
pub(super) fn hosts(value: &[u8]) -> Vec<&str> {
    let mut hosts = Vec::new();
    let mut rest = value;
    while let Ok(field) = next(&mut rest) {
        if field.number == field::HOSTS {
            hosts.extend(std::str::from_utf8(field.content));
        }
    }
    hosts
}

/// The key of an entry of a map.
fn key(mut entry: &[u8]) -> Result<&[u8], Damaged> {
    let mut key: &[u8] = &[];
    while !entry.is_empty() {
        let field = next(&mut entry)?;
        if field.number == field::KEY {
            key = field.content;
        }
    }
    Ok(key)
}

fn next<'v>(rest: &mut &'v [u8]) -> Result<Field<'v>, Damaged> {
    let start = *rest;
    let (number, wire) = decode_key(rest).map_err(|_| Damaged)?;
    let mut content: &[u8] = &[];
    match wire {
        WireType::Varint => drop(decode_varint(rest).map_err(|_| Damaged)?),
        WireType::SixtyFourBit => drop(take(rest, 8)?),
        WireType::ThirtyTwoBit => drop(take(rest, 4)?),
        WireType::LengthDelimited => {
            let length = decode_varint(rest).map_err(|_| Damaged)?;
            content = take(rest, usize::try_from(length).map_err(|_| Damaged)?)?;
        }
        WireType::StartGroup | WireType::EndGroup => return Err(Damaged),
    }
    Ok(Field { number, whole: &start[..start.len() - rest.len()], content })
}

fn take<'v>(rest: &mut &'v [u8], length: usize) -> Result<&'v [u8], Damaged> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Damaged)?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use tenon_proto::tcs::v1::{Product, Shard, TenantContext};

    use super::*;

    fn product() -> impl Strategy<Value = Product> {
        let shard = prop::option::of(("[a-z]{0,5}", "[a-z]{0,5}", "[a-z]{0,5}"))
            .prop_map(|shard| shard.map(|(cluster, database, schema)| Shard { cluster, database, schema }));
        (0..4i32, "[a-z]{0,8}", any::<u32>(), prop::collection::vec("[a-z]{0,6}", 0..4), shard).prop_map(
            |(state, edition, seats, features, shard)| Product {
                state,
                edition,
                seats,
                license_expires_at: None,
                features,
                shard,
            },
        )
    }

    fn tenant() -> impl Strategy<Value = TenantContext> {
        let hosts = prop::collection::vec("[a-z.]{1,20}", 0..4);
        let products = prop::collection::hash_map("media|issues|wiki|[a-z]{1,3}", product(), 0..6);
        let settings = prop::collection::hash_map("[a-z]{1,5}", "[a-z]{0,9}", 0..4);
        ("[a-z0-9]{0,9}", any::<u64>(), 0..3i32, hosts, "[a-z]{0,5}", products, settings).prop_map(
            |(tenant_id, revision, status, hosts, region, products, settings)| TenantContext {
                tenant_id,
                revision,
                status,
                hosts,
                realm: "commercial".to_owned(),
                region,
                products: products.into_iter().collect(),
                settings: settings.into_iter().collect(),
                r#move: None,
            },
        )
    }

    proptest! {
        #[test]
        fn it_shows_what_decoding_and_encoding_would_show(tenant in tenant(), product in "media|wiki|") {
            let value = Bytes::from(tenant.encode_to_vec());
            let shown = with_product(&value, &product).unwrap();
            let mut wanted = TenantContext::decode(value).unwrap();
            wanted.products.retain(|name, _| *name == product);
            prop_assert_eq!(&TenantContext::decode(shown.clone()).unwrap(), &wanted);
            prop_assert_eq!(&shown, &wanted.encode_to_vec());
            // Projecting what was projected changes nothing: a relay of the view would send the same bytes.
            prop_assert_eq!(with_product(&shown, &product).unwrap(), shown);
        }

        #[test]
        fn its_hosts_are_those_of_the_decoded_record(tenant in tenant()) {
            let value = tenant.encode_to_vec();
            prop_assert_eq!(hosts(&value), tenant.hosts);
        }

        #[test]
        fn bytes_of_any_kind_make_no_panic(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = hosts(&value);
            let value = Bytes::from(value);
            if TenantContext::decode(value.clone()).is_ok_and(|tenant| !tenant.products.is_empty()) {
                prop_assert!(with_product(&value, "media").is_ok() || has_group(&value));
            }
            let _ = with_product(&value, "media");
        }
    }

    /// prost reads over groups, which no version of this message has.
    fn has_group(value: &[u8]) -> bool {
        value.iter().any(|byte| matches!(byte & 7, 3 | 4))
    }

    #[test]
    fn an_unknown_field_passes_and_all_else_stays_in_its_place() {
        let tenant =
            TenantContext { tenant_id: "acme".to_owned(), region: "us".to_owned(), ..TenantContext::default() };
        let mut value = tenant.encode_to_vec();
        value.extend([0x3a, 0x07, 0x0a, 0x05]);
        value.extend(b"media");
        value.extend([0x3a, 0x06, 0x0a, 0x04]);
        value.extend(b"wiki");
        value.extend([0xfa, 0x3e, 0x02, 1, 2]); // Field 1007.
        let shown = with_product(&value.clone().into(), "wiki").unwrap();
        let mut wanted = value.clone();
        wanted.drain(tenant.encoded_len()..tenant.encoded_len() + 9);
        assert_eq!(shown, wanted);
    }

    #[test]
    fn what_is_cut_short_is_damaged() {
        let products = [("media".to_owned(), Product::default())].into();
        let tenant = TenantContext { tenant_id: "acme".to_owned(), products, ..TenantContext::default() };
        let value = Bytes::from(tenant.encode_to_vec());
        for cut in [1, 3, value.len() - 1] {
            assert_eq!(with_product(&value.slice(..cut), "media"), Err(Damaged), "{cut}");
        }
    }

    #[test]
    fn a_record_that_has_nothing_to_hide_is_not_copied() {
        let products = [("media".to_owned(), Product::default())].into();
        let value = Bytes::from(TenantContext { products, ..TenantContext::default() }.encode_to_vec());
        assert_eq!(with_product(&value, "media").unwrap().as_ptr(), value.as_ptr());
    }
}
