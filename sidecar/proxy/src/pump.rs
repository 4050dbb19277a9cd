//! The request's body on its way to the other side: every byte with backpressure, every end as it came.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body as _;
use hyper::body::Incoming;

use crate::{call::Line, headers};

/// Pumps `body` into `stream` until its end, until the other side wants no more, or until the call is over.
///
/// The last holds at every moment, also while the other side does not read: then the stream is reset, so that an app
/// that never looks at a request does not keep it for ever.
pub async fn pump(mut body: Incoming, mut stream: SendStream<Bytes>, line: Arc<Line>) {
    loop {
        match next(&mut body, &mut stream, &line).await {
            Next::Data(data) => {
                if let Err(reason) = send(data, &mut stream, &line).await {
                    return stream.send_reset(reason);
                }
            }
            Next::Trailers(mut trailers) => {
                headers::strip_reserved(&mut trailers);
                let _the_stream_has_ended = stream.send_trailers(trailers);
                return line.sent(stream);
            }
            Next::End => {
                let _the_stream_has_ended = stream.send_data(Bytes::new(), true);
                return line.sent(stream);
            }
            // The other side wants no more of it; its answer says the rest.
            Next::Unwanted => return line.sent(stream),
            Next::Broken(reason) => return stream.send_reset(reason),
        }
    }
}

enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Unwanted,
    Broken(Reason),
}

async fn next(body: &mut Incoming, stream: &mut SendStream<Bytes>, line: &Line) -> Next {
    poll_fn(|cx| {
        if line.poll_request(cx).is_ready() {
            return Poll::Ready(Next::Broken(Reason::CANCEL));
        }
        if stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Next::Unwanted);
        }
        Pin::new(&mut *body).poll_frame(cx).map(|frame| match frame {
            None if body.is_end_stream() => Next::End,
            // Without an end, and without an error that says why: not the end of the request.
            None => Next::Broken(Reason::CANCEL),
            Some(Err(error)) => Next::Broken(reason(&error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Next::Data(data),
                Err(frame) => frame.into_trailers().map_or(Next::End, Next::Trailers),
            },
        })
    })
    .await
}

/// Sends one chunk, as the other side makes room for it.
async fn send(mut data: Bytes, stream: &mut SendStream<Bytes>, line: &Line) -> Result<(), Reason> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| {
            if line.poll_request(cx).is_ready() {
                return Poll::Ready(Err(Reason::CANCEL));
            }
            stream.poll_capacity(cx).map(|room| match room {
                Some(Ok(room)) => Ok(room),
                // Reset by the other side: sending on tells nobody anything.
                Some(Err(_)) | None => Err(Reason::CANCEL),
            })
        })
        .await?;
        let chunk = data.split_to(room.min(data.len()));
        stream.send_data(chunk, false).map_err(|_| Reason::CANCEL)?;
    }
    Ok(())
}

/// The code with which the caller reset its request; CANCEL when it went away.
fn reason(error: &hyper::Error) -> Reason {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        source = error.source();
    }
    Reason::CANCEL
}
