//! The Tenant Context Service.
