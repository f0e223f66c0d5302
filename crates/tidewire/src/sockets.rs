//! What the gateway asks of the rest: who a client is, and to publish what a client sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tidewire_core::commit::{Committed, Request};
use tidewire_core::event::Ephemeral;
use tidewire_core::principal::Principal;
use tidewire_core::store::Answer;
use tidewire_core::{Error, TenantId};
use tidewire_gateway::{Authenticate, Credential, Gateway, Publish, Refusal};
use tidewire_runtime::{Broadcast, Publisher};
use tidewire_server::auth::Tokens;

/// Verifies the tokens of end users.
pub(crate) struct EndUsers {
    pub(crate) tokens: Arc<Option<Tokens>>,
    /// Which tenants exist; absent means any.
    pub(crate) tenants: Option<Vec<TenantId>>,
}

impl Authenticate for EndUsers {
    fn authenticate<'a>(
        &'a self,
        credential: Option<Credential<'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Principal, Refusal>> + Send + 'a>> {
        Box::pin(std::future::ready(self.verify(credential)))
    }
}

impl EndUsers {
    fn verify(&self, credential: Option<Credential<'_>>) -> Result<Principal, Refusal> {
        let credential = credential.ok_or(Refusal::Missing)?;
        let tokens = (*self.tokens).as_ref().ok_or(Refusal::Unchecked)?;
        let principal = tokens.verify(credential.value).map_err(|error| {
            tracing::debug!(%error, "a token was refused");
            Refusal::Invalid(String::new())
        })?;
        if self.tenants.as_ref().is_some_and(|known| !known.contains(&principal.tenant)) {
            return Err(Refusal::Invalid(String::new()));
        }
        Ok(principal)
    }
}

/// Publishes what catalog messages lead to.
pub(crate) struct FromClients(pub(crate) Arc<Publisher>);

impl Publish for FromClients {
    fn publish(&self, tenant: &TenantId, user: Option<&str>, request: Request) -> Answer<'_, Committed> {
        let tenant = tenant.clone();
        let user = user.map(str::to_owned);
        Box::pin(async move {
            let Some(user) = user else {
                return Err(Error::new(tidewire_core::Kind::Forbidden, "auth.required", "visitors cannot publish"));
            };
            let mut request = request;
            for event in &mut request.events {
                event.user_id.get_or_insert_with(|| user.clone());
            }
            self.0.commit(&tenant, request, None).await
        })
    }
}

/// Hands ephemeral events to the gateway.
pub(crate) struct ToGateway(pub(crate) Gateway);

impl Broadcast for ToGateway {
    fn broadcast(&self, events: &[Ephemeral]) {
        self.0.deliver_ephemeral(events);
    }
}
