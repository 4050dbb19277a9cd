//! The pages, which are part of the binary.

use axum::{
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::Problem;

const FILES: [(&str, &str, &str); 8] = [
    ("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
    ("/api.js", "text/javascript; charset=utf-8", include_str!("assets/api.js")),
    ("/dom.js", "text/javascript; charset=utf-8", include_str!("assets/dom.js")),
    ("/graph.js", "text/javascript; charset=utf-8", include_str!("assets/graph.js")),
    ("/pages.js", "text/javascript; charset=utf-8", include_str!("assets/pages.js")),
];

/// One of them.
pub(super) async fn file(method: Method, uri: Uri) -> Response {
    let found = FILES.iter().find(|(path, ..)| *path == uri.path());
    match (found, method) {
        (Some((_, kind, text)), Method::GET | Method::HEAD) => ([(header::CONTENT_TYPE, *kind)], *text).into_response(),
        (Some(_), _) => Problem::new(StatusCode::METHOD_NOT_ALLOWED, "use GET").into_response(),
        (None, _) => {
            Problem::new(StatusCode::NOT_FOUND, "there is no such page: the dashboard is at /").into_response()
        }
    }
}
