//! A job type as a Rust type.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidewire_core::commit::NewJob;
use tidewire_core::{Json, Result};

/// The data of one job type. The type's queue, attempts and backoff are in the catalog.
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The name of the job type in the catalog.
    const TYPE: &'static str;

    /// The job as it is staged into a commit. Code `json.invalid` when the data cannot be written as JSON.
    fn stage(&self) -> Result<NewJob> {
        Ok(NewJob::new(Self::TYPE, Json::from_serialize(self)?))
    }
}
