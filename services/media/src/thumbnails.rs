//! Small pictures of what is uploaded. Blocks: for tokio's blocking threads.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write as _},
    path::Path,
};

use image::{
    DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder,
    codecs::png::PngEncoder,
};

use crate::{items::Thumb, shards::Folder};

#[cfg(test)]
mod tests;

/// The longer sides, in pixels, largest first: each is made of the one before.
pub(crate) const EDGES: [u32; 3] = [1024, 256, 64];
/// A picture with more pixels gets no thumbnails: about what a good camera makes.
const PIXELS: u64 = 50_000_000;
/// Longest side, in pixels.
const SIDE: u32 = 20_000;
/// Memory that decoding one picture may take, in bytes. A small file can ask for any amount.
const MEMORY_BYTES: u64 = 256 << 20;
const JPEG_QUALITY: u8 = 82;

/// Why a file has no thumbnails. None of it concerns the upload, which is kept as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoThumbnails {
    #[error("it is no PNG or JPEG")]
    OtherFormat,
    #[error("it is too large a picture: {width} × {height} pixels in {bytes} bytes")]
    TooLarge { width: u32, height: u32, bytes: u64 },
    #[error("it cannot be decoded")]
    Undecodable(#[source] ImageError),
    /// This one does concern the upload: most likely the disk is full.
    #[error("the thumbnail cannot be written")]
    Write(#[source] io::Error),
}

/// Makes the thumbnails of `original` in the folder that it lies in. Edges longer than the picture are left out: nothing
/// is scaled up.
pub(crate) fn make(original: &Path, folder: &Folder) -> Result<Vec<Thumb>, NoThumbnails> {
    let (format, mut picture) = decode(original)?;
    let longer_side = picture.width().max(picture.height());
    let mut made = Vec::new();
    for edge in EDGES.into_iter().filter(|edge| *edge <= longer_side) {
        picture = picture.thumbnail(edge, edge);
        let size = write(&picture, format, &folder.incoming(&edge.to_string()))?;
        made.push(Thumb { edge, width: picture.width(), height: picture.height(), size });
    }
    made.reverse();
    Ok(made)
}

fn decode(original: &Path) -> Result<(ImageFormat, DynamicImage), NoThumbnails> {
    let file = File::open(original).map_err(NoThumbnails::Write)?;
    // What a file is, its first bytes say; what its uploader called it does not matter.
    let mut reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(NoThumbnails::Write)?;
    let format = match reader.format() {
        Some(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        _ => return Err(NoThumbnails::OtherFormat),
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE);
    limits.max_image_height = Some(SIDE);
    limits.max_alloc = Some(MEMORY_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(NoThumbnails::Undecodable)?;
    let (width, height) = decoder.dimensions();
    let bytes = decoder.total_bytes();
    if u64::from(width) * u64::from(height) > PIXELS || bytes > MEMORY_BYTES {
        return Err(NoThumbnails::TooLarge { width, height, bytes });
    }
    let orientation = decoder.orientation().map_err(NoThumbnails::Undecodable)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(NoThumbnails::Undecodable)?;
    picture.apply_orientation(orientation);
    Ok((format, picture))
}

/// Writes in the format of the original, 8 bits a channel, and returns the size in bytes.
fn write(picture: &DynamicImage, format: ImageFormat, to: &Path) -> Result<u64, NoThumbnails> {
    let file = File::create_new(to).map_err(NoThumbnails::Write)?;
    let mut out = BufWriter::new(file);
    let encoded = if format == ImageFormat::Jpeg {
        picture.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY))
    } else {
        picture.to_rgba8().write_with_encoder(PngEncoder::new(&mut out))
    };
    encoded.map_err(|error| NoThumbnails::Write(io_of(error)))?;
    out.flush().map_err(NoThumbnails::Write)?;
    let file = out.into_inner().map_err(|error| NoThumbnails::Write(error.into_error()))?;
    file.sync_all().map_err(NoThumbnails::Write)?;
    file.metadata().map(|metadata| metadata.len()).map_err(NoThumbnails::Write)
}

fn io_of(error: ImageError) -> io::Error {
    if let ImageError::IoError(error) = error { error } else { io::Error::other(error) }
}
