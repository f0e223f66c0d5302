//! What the gateway asks of the rest: who a client is, and to publish what a client sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidewire_core::commit::{Committed, Request};
use tidewire_core::event::Ephemeral;
use tidewire_core::principal::{Principal, Sender};
use tidewire_core::store::Answer;
use tidewire_core::{Error, TenantId};
use tidewire_gateway::{Authenticate, Credential, Gateway, Handled, Publish, Refusal};
use tidewire_runtime::{Broadcast, Handlers, Publisher};
use tidewire_server::auth::{Refused, Tokens};
use tidewire_server::revoke::Revocations;
use tidewire_server::session::{Sessions, is_jwt};

/// Verifies the tokens and sessions of end users.
pub(crate) struct EndUsers {
    pub(crate) tokens: Arc<Option<Tokens>>,
    /// Sessions that the app itself checks; absent where the catalog names no endpoint for them.
    pub(crate) sessions: Option<Sessions>,
    /// Which tenants exist; absent means any.
    pub(crate) tenants: Option<Vec<TenantId>>,
    /// Credentials that are no longer good.
    pub(crate) revocations: Arc<Revocations>,
}

impl Authenticate for EndUsers {
    fn authenticate<'a>(
        &'a self,
        credential: Option<Credential<'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Principal, Refusal>> + Send + 'a>> {
        Box::pin(self.verify(credential))
    }

    fn is_revoked(&self, principal: &Principal) -> bool {
        self.revocations.is_revoked(principal)
    }
}

impl EndUsers {
    /// One verifier decides by the look of the credential alone, and what it refuses no other one is asked about.
    async fn verify(&self, credential: Option<Credential<'_>>) -> Result<Principal, Refusal> {
        let credential = credential.ok_or(Refusal::Missing)?;
        let principal = match ((*self.tokens).as_ref(), &self.sessions) {
            (Some(tokens), sessions) if sessions.is_none() || is_jwt(credential.value) => {
                tokens.verify(credential.value).await.map_err(|refused| match refused {
                    Refused::Invalid(error) => {
                        tracing::debug!(%error, "a token was refused");
                        Refusal::Invalid(String::new())
                    }
                    Refused::Unchecked => Refusal::Unchecked,
                })?
            }
            (_, Some(sessions)) => sessions.verify(credential).await?,
            (_, None) => return Err(Refusal::Unchecked),
        };
        if self.tenants.as_ref().is_some_and(|known| !known.contains(&principal.tenant)) {
            return Err(Refusal::Invalid(String::new()));
        }
        if self.revocations.is_revoked(&principal) {
            return Err(Refusal::Invalid("it has been revoked".to_owned()));
        }
        Ok(principal)
    }
}

/// Publishes what clients' messages lead to, and calls the handlers of those that have one.
pub(crate) struct FromClients {
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) handlers: Handlers,
    /// How long a handler may take.
    pub(crate) limit: Duration,
}

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
            for job in &mut request.jobs {
                job.user_id.get_or_insert_with(|| user.clone());
            }
            self.publisher.commit(&tenant, request, None).await
        })
    }

    fn handle(&self, message: &str, data: &Value, sender: &Sender) -> Option<Answer<'_, Handled>> {
        self.handlers.answer(message, data, sender, self.publisher.store(), self.limit)
    }
}

/// Hands ephemeral events to the gateway.
pub(crate) struct ToGateway(pub(crate) Gateway);

impl Broadcast for ToGateway {
    fn broadcast(&self, events: &[Ephemeral]) {
        self.0.deliver_ephemeral(events);
    }
}

#[cfg(test)]
mod tests {
    use tidewire_core::catalog::{self, CredentialSource};
    use tidewire_core::time::{Clock, SystemClock};
    use tidewire_server::Config;
    use tidewire_server::auth::Life;

    use super::*;

    const JWT: &str = "[auth.jwt]\nalgorithms = [\"HS256\"]\n";
    /// Nobody listens on port 1, so whoever asks there gets no answer.
    const SESSION: &str = "[auth.session]\nintrospect = \"http://127.0.0.1:1/session\"\n";

    async fn users(auth: &str) -> EndUsers {
        let catalog = catalog::parse(&format!("[app]\nname = \"shop\"\ntenant = \"orgId\"\n{auth}")).expect("catalog");
        let mut config = Config::default();
        config.auth.jwt.secret = Some("a secret of more than thirty-two bytes".to_owned());
        let clock = Arc::new(SystemClock);
        let ids = Arc::new(tidewire_core::id::UuidV7::from_os(clock.clone()));
        let store = tidewire_store::Memory::open(clock.clone(), ids).expect("a store");
        EndUsers {
            revocations: Arc::new(Revocations::open(store, clock).await.expect("revocations")),
            tokens: Arc::new(Tokens::new(&catalog, &config).expect("tokens")),
            sessions: Sessions::new(&catalog, Arc::new(SystemClock)).expect("sessions"),
            tenants: None,
        }
    }

    #[tokio::test]
    async fn the_look_of_a_credential_decides_who_checks_it_and_a_bad_one_never_falls_through() {
        let tenant = TenantId::new("dock-1").expect("tenant");
        let tokens = users(JWT).await.tokens;
        let now = SystemClock.now();
        let life = Life { from: now, until: now + Duration::from_secs(60) };
        let tokens = (*tokens).as_ref().expect("tokens");
        let good = tokens.mint(&tenant, "ann", &[], serde_json::Map::new(), life).expect("token");
        let forged = format!("{good}x");
        let (invalid, unchecked) = (Err(Refusal::Invalid(String::new())), Err(Refusal::Unchecked));
        let both = format!("{JWT}{SESSION}");
        for (auth, value, expected) in [
            (both.as_str(), good.as_str(), Ok(())),
            (&both, &forged, invalid.clone()),
            (&both, "a-session", unchecked.clone()),
            (JWT, &good, Ok(())),
            (JWT, "a-session", invalid.clone()),
            (SESSION, &good, unchecked),
            // A catalog that says nothing takes tokens as long as there is a secret to check them with.
            ("", &good, Ok(())),
            ("", &forged, invalid),
        ] {
            let credential = Credential { source: &CredentialSource::AuthToken, value };
            let answer = users(auth).await.authenticate(Some(credential)).await;
            assert_eq!(answer.map(drop), expected, "{auth}{value}");
        }
        assert_eq!(users(&both).await.authenticate(None).await.map(drop), Err(Refusal::Missing));
    }
}
