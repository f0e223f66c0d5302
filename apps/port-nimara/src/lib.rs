//! Port Nimara: the marina CRM of the live demo.
