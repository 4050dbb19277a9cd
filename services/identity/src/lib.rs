//! The identity service: certificate authority and ASAP key repository.
