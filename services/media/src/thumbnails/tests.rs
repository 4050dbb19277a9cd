use std::{fs, path::PathBuf};

use image::{GenericImageView as _, Rgba, RgbaImage};
use tempfile::TempDir;

use super::*;
use crate::{shards::Shards, tenancy::Tenancy};

/// Makes the thumbnails of these bytes; the folder lives as long as the test.
async fn thumbnails(bytes: &[u8]) -> (TempDir, Result<Vec<Thumb>, NoThumbnails>, impl Fn(u32) -> PathBuf + use<>) {
    let data = TempDir::new().unwrap();
    let store = Shards::open(data.path()).unwrap().store(Tenancy::for_tests("acme")).await.unwrap();
    let folder = store.announce(&crate::tenancy::Name::parse("item").unwrap()).await.unwrap();
    let original = folder.incoming("original");
    fs::write(&original, bytes).unwrap();
    let made = make(&original, &folder);
    (data, made, move |edge| folder.incoming(&edge.to_string()))
}

fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let pixels = RgbaImage::from_fn(width, height, |x, y| Rgba([(x % 256) as u8, (y % 256) as u8, 80, 255]));
    let mut bytes = io::Cursor::new(Vec::new());
    let picture = DynamicImage::from(pixels);
    if format == ImageFormat::Jpeg {
        picture.to_rgb8().write_to(&mut bytes, format).unwrap();
    } else {
        picture.write_to(&mut bytes, format).unwrap();
    }
    bytes.into_inner()
}

/// A PNG that says it has this many pixels, and has none.
fn png_that_claims(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 6, 0, 0, 0]);
    let crc = !header.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    });
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(header);
    png.extend(crc.to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

#[tokio::test]
async fn the_longer_side_is_the_edge_and_nothing_is_scaled_up() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg] {
        let (_data, made, file) = thumbnails(&picture(600, 300, format)).await;
        let made = made.unwrap();
        let sizes: Vec<_> = made.iter().map(|thumb| (thumb.edge, thumb.width, thumb.height)).collect();
        assert_eq!(sizes, [(64, 64, 32), (256, 256, 128)]);
        for thumb in made {
            let bytes = fs::read(file(thumb.edge)).unwrap();
            assert_eq!(bytes.len() as u64, thumb.size);
            assert_eq!(image::guess_format(&bytes).unwrap(), format);
            assert_eq!(image::load_from_memory(&bytes).unwrap().dimensions(), (thumb.width, thumb.height));
        }
    }
}

#[tokio::test]
async fn edges_begin_where_the_picture_is_as_long() {
    for (side, edges) in [(63, vec![]), (64, vec![64]), (1023, vec![64, 256]), (1024, vec![64, 256, 1024])] {
        let (_data, made, _) = thumbnails(&picture(2, side, ImageFormat::Png)).await;
        assert_eq!(made.unwrap().iter().map(|thumb| thumb.edge).collect::<Vec<_>>(), edges, "{side}");
    }
}

#[tokio::test]
async fn a_decompression_bomb_is_not_unpacked() {
    for (width, height) in [(60_000, 60_000), (19_000, 19_000), (u32::MAX >> 1, 1)] {
        let (_data, made, _) = thumbnails(&png_that_claims(width, height)).await;
        let refused = made.unwrap_err();
        let by_limit = match &refused {
            NoThumbnails::TooLarge { .. } => true,
            NoThumbnails::Undecodable(error) => matches!(error, ImageError::Limits(_)),
            NoThumbnails::OtherFormat | NoThumbnails::Write(_) => false,
        };
        assert!(by_limit, "{width} × {height}: {refused:?}");
    }
}

#[tokio::test]
async fn what_is_no_picture_has_no_thumbnails_whatever_it_claims() {
    let (_data, made, _) = thumbnails(b"plain text").await;
    assert!(matches!(made, Err(NoThumbnails::OtherFormat)));
    let (_data, made, _) = thumbnails(b"").await;
    assert!(matches!(made, Err(NoThumbnails::OtherFormat)));
    let mut cut = picture(300, 300, ImageFormat::Png);
    cut.truncate(cut.len() / 2);
    let (_data, made, _) = thumbnails(&cut).await;
    assert!(matches!(made, Err(NoThumbnails::Undecodable(_))), "{made:?}");
}
