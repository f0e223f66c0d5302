//! Built-in job handlers.
