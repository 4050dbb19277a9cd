//! Sample product service: files of each tenant, with thumbnails.
