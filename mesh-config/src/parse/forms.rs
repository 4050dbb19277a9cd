//! Forms that several kinds share, for the schema. Tests hold each against what the parser takes.

use crate::yaml::Form;

/// A service, a region, a zone, a product or a tenant.
pub(super) const LABEL: Form = Form::Like("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$");
/// A document or a rule.
pub(super) const NAME: Form = Form::Like("^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$");
/// Text that is not empty and stays on its line.
pub(super) const WORD: Form = Form::Like(r"^[^\x00-\x1F\x7F]+$");
/// CA certificates.
pub(super) const CERTIFICATES: Form = Form::Like("-----BEGIN CERTIFICATE-----");
/// Of one document.
pub(super) const URL: Form = Form::Like("^https://[^#]+$");
/// A method, or all methods of a gRPC service.
pub(super) const PATH: Form = Form::Like(r"^/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*/([A-Za-z0-9_-]+|\*)$");
/// Switches a setting off.
pub(super) const OFF: Form = Form::Choice(|| vec!["off"]);
/// How long something takes.
pub(super) const DURATION: Form = Form::Like("^[0-9]+(ms|s|m)$");
/// How much there may be of something.
pub(super) const SIZE: Form = Form::Like("^[0-9]+(B|KiB|MiB)$");
