//! ASAP tokens and keys: parse, mint, verify.
