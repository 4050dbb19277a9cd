use super::*;

fn key() -> Key {
    Key::new([7; 32])
}

fn sealed(plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::begin(Vec::new(), &key()).unwrap();
    for piece in plain.chunks(50_000) {
        sealer.write(piece).unwrap();
    }
    sealer.finish().unwrap()
}

fn opened(sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut plain = Vec::new();
    for chunk in Opener::begin(sealed, &key())? {
        plain.extend(chunk?);
    }
    Ok(plain)
}

fn plain(length: usize) -> Vec<u8> {
    (0..length).map(|number| u8::try_from(number % 251).unwrap()).collect()
}

#[test]
fn what_was_sealed_is_opened_whatever_its_length() {
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
        let sealed = sealed(&plain(length));
        assert_eq!(sealed.len(), HEADER + length + TAG * length.div_ceil(CHUNK).max(1), "{length}");
        assert_eq!(opened(&sealed).unwrap(), plain(length), "{length}");
    }
}

#[test]
fn two_files_of_the_same_content_and_key_have_nothing_in_common() {
    let (one, other) = (sealed(&plain(100)), sealed(&plain(100)));
    assert_ne!(one[HEADER..], other[HEADER..]);
}

#[test]
fn a_file_that_ends_too_early_does_not_open() {
    let whole = sealed(&plain(3 * CHUNK + 5));
    for at in [1, 12, 13, 20, HEADER - 1, HEADER, HEADER + CHUNK + TAG, HEADER + 3 * (CHUNK + TAG)] {
        let error = opened(&whole[..at]).unwrap_err();
        assert!(matches!(error, SealError::Truncated), "{at}: {error}");
    }
    for at in [HEADER + 1, HEADER + TAG, HEADER + CHUNK, whole.len() - 1] {
        let error = opened(&whole[..at]).unwrap_err();
        assert!(matches!(error, SealError::Damaged { .. }), "{at}: {error}");
    }
}

#[test]
fn a_file_with_one_other_byte_does_not_open_and_says_where() {
    let whole = sealed(&plain(2 * CHUNK + 5));
    for at in (0..HEADER + 40).chain((HEADER + 40..whole.len()).step_by(997)).chain([whole.len() - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        let error = opened(&damaged).unwrap_err();
        match (at, &error) {
            (0..12, SealError::Foreign) | (12, SealError::Version(_)) | (13..21, SealError::OtherKey { .. }) => {}
            (21.., SealError::Damaged { at: from }) => {
                let chunk = at.saturating_sub(HEADER) / (CHUNK + TAG);
                assert_eq!(*from as usize, HEADER + chunk * (CHUNK + TAG), "{at}");
            }
            _ => panic!("{at}: {error}"),
        }
    }
}

#[test]
fn chunks_that_are_swapped_left_out_doubled_or_added_do_not_open() {
    let whole = sealed(&plain(3 * CHUNK));
    let (header, chunks) = whole.split_at(HEADER);
    let chunks: Vec<_> = chunks.chunks(CHUNK + TAG).collect();
    for order in [vec![1, 0, 2], vec![0, 2], vec![0, 0, 1, 2], vec![0, 1, 2, 2], vec![0, 1, 2, 0]] {
        let file = [header, &order.iter().map(|chunk| chunks[*chunk]).collect::<Vec<_>>().concat()].concat();
        assert!(opened(&file).is_err(), "{order:?}");
    }
    let other = sealed(&plain(3 * CHUNK));
    let mixed = [&whole[..HEADER + CHUNK + TAG], &other[HEADER + CHUNK + TAG..]].concat();
    assert!(opened(&mixed).is_err(), "a chunk of another file under the same key");
}

#[test]
fn the_wrong_key_is_told_from_damage_by_name() {
    let whole = sealed(&plain(10));
    let error = Opener::begin(&whole[..], &Key::new([8; 32])).err().unwrap();
    assert!(matches!(&error, SealError::OtherKey { of, given } if of != given), "{error}");
    let error = Opener::begin(&b"tenants"[..], &key()).err().unwrap();
    assert!(matches!(error, SealError::Foreign), "{error}");
    let error = Opener::begin(&b""[..], &key()).err().unwrap();
    assert!(matches!(error, SealError::Foreign), "{error}");
}
