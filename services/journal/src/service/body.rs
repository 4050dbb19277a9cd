//! The two directions of a Follow stream, without the buffers that tonic keeps for each: most followers say little and are
//! told what others are told too.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream;
use http_body::{Body as _, Frame};
use prost::Message as _;
use tenon_proto::replication::v1::FollowRequest;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE},
};

use crate::{FollowStream, publisher::FRAME};

/// The largest request: a Start with its digests takes 4 KiB.
const LARGEST_REQUEST: usize = 64 << 10;

/// What a follower sends. It keeps no more than the part of a message that has come.
pub(super) struct Requests {
    body: Body,
    partial: BytesMut,
}

impl Requests {
    pub(super) fn new(body: Body) -> Self {
        Self { body, partial: BytesMut::new() }
    }

    /// The next message, once it is there whole.
    fn message(&mut self) -> Result<Option<FollowRequest>, Status> {
        let Some(frame) = self.partial.first_chunk::<FRAME>() else { return Ok(None) };
        let [compressed, length @ ..] = *frame;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed requests are not taken here"));
        }
        if length > LARGEST_REQUEST {
            return Err(Status::out_of_range(format!("a request of {length} bytes: {LARGEST_REQUEST} at most")));
        }
        if self.partial.len() < FRAME + length {
            return Ok(None);
        }
        self.partial.advance(FRAME);
        let message = FollowRequest::decode(self.partial.split_to(length).freeze());
        if self.partial.is_empty() {
            self.partial = BytesMut::new(); // Gives its memory back.
        }
        message.map(Some).map_err(|error| Status::internal(format!("a request does not decode: {error}")))
    }
}

impl Stream for Requests {
    type Item = Result<FollowRequest, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(message) = self.message().transpose() {
                return Poll::Ready(Some(message));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.partial.extend_from_slice(&data);
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// What a follower is sent: messages that have what gRPC puts before each, then the status.
pub(super) struct Responses {
    /// None after the status.
    messages: Option<FollowStream>,
}

impl Responses {
    pub(super) fn answer(messages: FollowStream) -> Response<Body> {
        let mut response = Response::new(Body::new(Self { messages: Some(messages) }));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl http_body::Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
        let status = match ready!(messages.as_mut().poll_next(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.messages = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none()
    }
}
