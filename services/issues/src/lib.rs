//! Sample product service: work items, comments and attachments of each tenant.
