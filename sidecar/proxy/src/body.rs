//! The answer's body: it streams through untouched, and the account of the call lives in it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_telemetry::Messages;
use sidecar_core::{Reason, Refusal};
use tokio::time::Sleep;

use crate::{call::Call, forward::revoked_refusal, headers};

/// Why a body ended before its end. Its source names the HTTP/2 error code, so that hyper resets with the same one.
#[derive(Debug)]
pub enum BodyError {
    /// The peer that sends this body reset it or went away.
    Peer(h2::Error),
    /// This sidecar ended the call.
    HungUp(h2::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer(_) => "the peer broke off",
            Self::HungUp(_) => "the call was ended by the sidecar",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Peer(error) => Some(error),
            Self::HungUp(error) => Some(error),
        }
    }
}

/// An answer on its way back.
pub enum CallBody {
    /// Everything is in the headers.
    Empty,
    /// A short text, for HTTP.
    Text(Option<Bytes>),
    /// What the other side sends; boxed so that the common case moves one pointer.
    Following(Box<Following>),
    /// What this sidecar itself answers its app.
    Own(tonic::body::Body),
}

/// The other side's answer, with the account of its call.
pub struct Following {
    /// Not cut short, nor broken: then there may be more of it on the line of the call.
    open: bool,
    /// The data has come to its end; trailers may follow.
    data_ended: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    messages: Messages,
    call: Call,
}

impl CallBody {
    /// A body at its end.
    #[must_use]
    pub fn empty() -> Self {
        Self::Empty
    }

    /// A body of one chunk.
    #[must_use]
    pub fn text(text: Bytes) -> Self {
        Self::Text(Some(text))
    }

    /// An answer of this sidecar's own services.
    #[must_use]
    pub const fn own(body: tonic::body::Body) -> Self {
        Self::Own(body)
    }

    /// Pumps the answer and closes the account of `call` at its end.
    pub fn follow(response: Response<RecvStream>, mut call: Call) -> Response<Self> {
        let (mut parts, answer) = response.into_parts();
        // Those of the callee's app go at its sidecar: nobody but a sidecar speaks for the mesh. Those of the callee's
        // sidecar go at the caller's.
        headers::strip_reserved(&mut parts.headers);
        // A body already at its end is never polled: Trailers-Only answers end here. A status in the head says so too, also
        // where a reset without error has come right behind it, as it does when the request was not read to its end.
        let status = parts.headers.get("grpc-status");
        if answer.is_end_stream() || (call.facts().grpc && status.is_some()) {
            call.finish(status);
            return Response::from_parts(parts, Self::Empty);
        }
        let deadline = call.deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        call.line.follow(answer);
        // Where nobody reads, it may never be asked for its first frame.
        call.handed_on(true);
        let following = Following { open: true, data_ended: false, deadline, messages: Messages::default(), call };
        Response::from_parts(parts, Self::Following(Box::new(following)))
    }
}

impl Following {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.open {
            return Poll::Ready(None);
        }
        if let Poll::Ready(refusal) = self.call.line.poll_response(cx) {
            let refusal = refusal.clone();
            return self.cut_short(&refusal);
        }
        if let Some(deadline) = self.deadline.as_mut()
            && deadline.as_mut().poll(cx).is_ready()
        {
            let refusal = deadline_refusal();
            self.call.line.hang_up(refusal.clone());
            return self.cut_short(&refusal);
        }
        match ready!(self.poll_answer(cx)) {
            Some(Ok(frame)) => {
                // hyper does not poll a body again that has said it is at its end.
                if let Some(data) = frame.data_ref() {
                    self.call.answered += self.messages.pass(data);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.finish(trailers.get("grpc-status"));
                } else if self.call.line.is_at_its_end() {
                    self.call.finish(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.call.finish(None);
                Poll::Ready(None)
            }
            Some(Err(error)) => self.broken(error),
        }
    }

    /// The next frame as the other side sent it. What it may send more is told it when the frame has been taken here,
    /// which is when the frame before it has been sent on.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let mut answer = self.call.line.answer();
        let Some(answer) = answer.as_mut() else { return Poll::Ready(None) };
        if !self.data_ended {
            match ready!(answer.poll_data(cx)) {
                Some(Ok(data)) => {
                    let released = answer.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(released.map(|()| Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        answer.poll_trailers(cx).map(|trailers| {
            trailers.transpose().map(|trailers| {
                trailers.map(|mut trailers| {
                    headers::strip_reserved(&mut trailers);
                    Frame::trailers(trailers)
                })
            })
        })
    }

    /// The next frame, noting since when the reader has one that it does not ask to follow.
    fn poll_noting(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_frame(cx);
        self.call.handed_on(polled.is_ready());
        polled
    }

    /// The reason goes into the trailers where the caller speaks gRPC; others see the stream reset.
    fn cut_short(&mut self, refusal: &Refusal) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.close();
        let trailers = self.call.refuse_open(refusal);
        if self.call.facts().grpc {
            Poll::Ready(Some(Ok(Frame::trailers(trailers))))
        } else {
            Poll::Ready(Some(Err(BodyError::HungUp(h2::Reason::CANCEL.into()))))
        }
    }

    /// Dropping what is left resets the stream to the other side.
    fn close(&mut self) {
        self.open = false;
        *self.call.line.answer() = None;
    }

    /// A reset by the other side is passed on; a lost connection becomes UNAVAILABLE in the trailers.
    fn broken(&mut self, error: h2::Error) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(refusal) = revoked_refusal(&self.call) {
            return self.cut_short(&refusal);
        }
        self.close();
        self.call.broken(&error);
        if self.call.facts().grpc && (!error.is_reset() || error.reason() == Some(h2::Reason::NO_ERROR)) {
            let mut trailers = HeaderMap::with_capacity(2);
            trailers.insert("grpc-status", HeaderValue::from_static("14"));
            trailers.insert("grpc-message", HeaderValue::from_static("the connection to the other side was lost"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(Some(Err(BodyError::Peer(after_the_head(error)))))
    }
}

impl Drop for Following {
    /// Whoever still has the line, as who pumps the request has, keeps nothing of the answer.
    fn drop(&mut self) {
        *self.call.line.answer() = None;
    }
}

/// With the code that it has, but for REFUSED_STREAM: that would say that the call was not begun, and it was. The head may
/// not have been sent when the stream is reset, and then is not at all.
fn after_the_head(error: h2::Error) -> h2::Error {
    if error.reason() == Some(h2::Reason::REFUSED_STREAM) { h2::Reason::CANCEL.into() } else { error }
}

/// The refusal of a call whose `grpc-timeout` has passed.
#[must_use]
pub fn deadline_refusal() -> Refusal {
    Refusal::new(Reason::Deadline, "the deadline of the call has passed")
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Following(following) => following.poll_noting(cx),
            Self::Own(body) => {
                Pin::new(body).poll_frame(cx).map_err(|_| BodyError::HungUp(h2::Reason::INTERNAL_ERROR.into()))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_none(),
            Self::Following(following) => !following.open || following.call.line.is_at_its_end(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Following(_) => SizeHint::default(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Request;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    /// The head of an answer is there, and its body is broken off.
    struct Broken;

    impl Body for Broken {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
            Poll::Ready(Some(Err(BodyError::Peer(after_the_head(refused)))))
        }
    }

    /// Bug: an app that refused the stream after the head of its answer had the whole call sent again: the caller's sidecar
    /// saw nothing but the refusal.
    #[tokio::test]
    async fn a_call_whose_answer_had_begun_is_not_said_to_be_unbegun() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Broken)) });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let serving = tokio::spawn(server.serve_connection(TokioIo::new(far), answer));
        let (mut client, connection) = h2::client::handshake(near).await.unwrap();
        let driving = tokio::spawn(connection);
        let (answer, _) = client.send_request(Request::post("http://x/").body(()).unwrap(), true).unwrap();
        let seen = match answer.await {
            Ok(response) => response.into_body().data().await.unwrap().unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(seen.reason(), Some(h2::Reason::CANCEL));
        serving.abort();
        driving.abort();
    }

    #[test]
    fn other_codes_are_passed_on() {
        for code in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR, h2::Reason::ENHANCE_YOUR_CALM] {
            assert_eq!(after_the_head(code.into()).reason(), Some(code));
        }
    }
}
