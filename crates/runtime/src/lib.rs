//! What moves things: workers, the scheduler, the publishing path.
