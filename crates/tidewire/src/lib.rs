//! Durable events, jobs, schedules and live sockets that commit together, per tenant.
