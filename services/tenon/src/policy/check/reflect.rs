//! Asking running apps for their methods: gRPC reflection v1, or v1alpha where a server has only that. In plaintext, as
//! sidecars talk to their apps.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    operator::reason,
    policy::lint::{Methods, Services, Unanswered, services_of},
};

/// A server gets no longer than this, connecting included.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers that are asked at a time.
const AT_ONCE: usize = 16;
/// A server that tells of more than this is not believed.
const MOST_SERVICES: usize = 1_000;
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// A server to ask, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub service: String,
    /// `host:port`
    pub address: String,
}

/// Asks all of them, and notes what they say and who does not answer.
pub async fn ask(servers: Vec<Server>, methods: &mut Methods) {
    let answers: Vec<_> = stream::iter(servers).map(patiently).buffered(AT_ONCE).collect().await;
    for (Server { service, address }, answer) in answers {
        match answer {
            Ok(services) => methods.serve(service, services),
            Err(why) => methods.unanswered(Unanswered { service, address, why }),
        }
    }
}

async fn patiently(server: Server) -> (Server, Result<Services, String>) {
    let answer = timeout(PATIENCE, services(&server.address)).await;
    (server, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
}

async fn services(address: &str) -> Result<Services, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| crate::failure::chain(&error))?;
    match v1::services(channel.clone()).await {
        Err(status) if status.code() == Code::Unimplemented => v1alpha::services(channel).await,
        answer => answer,
    }
    .map_err(|status| match status.code() == Code::Unimplemented {
        true => "it does not serve gRPC reflection".to_owned(),
        false => reason(&status),
    })
}

/// Adds the methods of the gRPC services in `wanted` that these files describe.
fn read(files: Vec<Vec<u8>>, wanted: &BTreeSet<String>, services: &mut Services) -> Result<(), Status> {
    for file in files {
        let file = FileDescriptorProto::decode(file.as_slice())
            .map_err(|error| Status::data_loss(format!("its descriptors cannot be read: {error}")))?;
        services.extend(services_of(&file).filter(|(name, _)| wanted.contains(name)));
    }
    Ok(())
}

fn too_much() -> Status {
    Status::resource_exhausted(format!("it tells of more than {MOST_SERVICES} gRPC services or {MOST_BYTES} bytes"))
}

/// The two versions differ in their package alone.
macro_rules! version {
    ($version:ident) => {
        mod $version {
            use std::collections::BTreeSet;

            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };

            use super::{Channel, MOST_BYTES, MOST_SERVICES, Services, Status, read, stream, too_much};

            pub(super) async fn services(channel: Channel) -> Result<Services, Status> {
                let mut client = ServerReflectionClient::new(channel);
                let request = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
                let list = stream::iter([request(MessageRequest::ListServices(String::new()))]);
                let answer = client.server_reflection_info(list).await?.into_inner().message().await?;
                let Some(MessageResponse::ListServicesResponse(list)) =
                    answer.and_then(|answer| answer.message_response)
                else {
                    return Err(Status::internal("it does not list its services"));
                };
                let wanted: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
                if wanted.len() > MOST_SERVICES {
                    return Err(too_much());
                }
                let symbols: Vec<_> =
                    wanted.iter().map(|name| request(MessageRequest::FileContainingSymbol(name.clone()))).collect();
                let mut answers = client.server_reflection_info(stream::iter(symbols)).await?.into_inner();
                let (mut services, mut bytes) = (Services::new(), 0);
                while let Some(answer) = answers.message().await? {
                    if let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response {
                        bytes += files.file_descriptor_proto.iter().map(Vec::len).sum::<usize>();
                        if bytes > MOST_BYTES {
                            return Err(too_much());
                        }
                        read(files.file_descriptor_proto, &wanted, &mut services)?;
                    }
                }
                match wanted.iter().find(|name| !services.contains_key(*name)) {
                    Some(name) => Err(Status::internal(format!("it lists {name} and does not describe it"))),
                    None => Ok(services),
                }
            }
        }
    };
}

version!(v1);
version!(v1alpha);
