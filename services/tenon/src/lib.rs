//! The control plane's roles, the operator's commands and `tenon up`.
