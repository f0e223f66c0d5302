//! Users of several tenants: which ones a credential allows, and what it says in another one than its own.
//!
//! The claim that the catalog calls `tenants` lists them, as texts, or as an object of tenants with the user's roles in each. The
//! credential's own tenant is its home and always allowed.

use std::sync::Arc;

use serde_json::{Value, json};
use tidewire_core::TenantId;
use tidewire_core::catalog::Catalog;
use tidewire_core::principal::Principal;

/// The most tenants of a user that are looked at.
const MOST: usize = 1_000;

/// The tenants that this user may be in, the home first. Only the home for users whose credential lists none.
pub(crate) fn tenants(catalog: &Catalog, principal: &Principal) -> Vec<TenantId> {
    let mut found = vec![home(principal)];
    let mut add = |name: &str| {
        if let Ok(tenant) = TenantId::new(name)
            && !found.contains(&tenant)
        {
            found.push(tenant);
        }
    };
    match principal.claims.get(claim(catalog)).filter(|_| principal.user.is_some()) {
        Some(Value::Array(names)) => names.iter().take(MOST).filter_map(Value::as_str).for_each(&mut add),
        Some(Value::Object(roles)) => roles.keys().take(MOST).map(String::as_str).for_each(&mut add),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) | None => {}
    }
    found
}

/// The same user in another tenant; `None` where the credential does not allow it. `homeTenant` and `homeRoles` keep what the credential says.
pub(crate) fn enter(catalog: &Catalog, principal: &Principal, tenant: &TenantId) -> Option<Principal> {
    if *tenant == principal.tenant {
        return Some(principal.clone());
    }
    if !tenants(catalog, principal).contains(tenant) {
        return None;
    }
    let home = home(principal);
    let home_roles = principal.claims.get("homeRoles").cloned().unwrap_or_else(|| json!(&*principal.roles));
    let said = match principal.claims.get(claim(catalog)) {
        // Roles may differ from tenant to tenant: where the credential tells them, those of one do not count in another. At home it tells
        // them by the claim for them, whether one comes straight there or back.
        Some(Value::Object(roles)) if *tenant != home => roles.get(tenant.as_str()).cloned(),
        Some(_) | None => None,
    };
    let roles: Vec<String> = match said.as_ref().unwrap_or(&home_roles) {
        Value::Array(roles) => roles.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::String(role) => vec![role.clone()],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    };
    let mut claims = (*principal.claims).clone();
    claims["homeTenant"] = json!(home);
    claims["homeRoles"] = home_roles;
    claims["tenant"] = json!(tenant);
    claims[tenant_claim(catalog)] = json!(tenant);
    claims["roles"] = json!(roles);
    Some(Principal { tenant: tenant.clone(), roles: roles.into(), claims: Arc::new(claims), ..principal.clone() })
}

/// The tenant that the credential itself names.
fn home(principal: &Principal) -> TenantId {
    let home = principal.claims.get("homeTenant").and_then(Value::as_str).and_then(|home| TenantId::new(home).ok());
    home.unwrap_or_else(|| principal.tenant.clone())
}

fn claim(catalog: &Catalog) -> &str {
    catalog.auth.jwt.as_ref().map_or("tenants", |jwt| &jwt.tenants_claim)
}

fn tenant_claim(catalog: &Catalog) -> &str {
    catalog.auth.jwt.as_ref().map_or(&catalog.app.tenant, |jwt| &jwt.tenant_claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(tenants: &Value) -> Principal {
        let claims = json!({ "id": "u", "tenant": "a", "orgId": "a", "roles": ["owner"], "tenants": tenants, "homeTenant": null });
        let (tenant, roles) = (TenantId::new("a").expect("tenant"), Arc::new(["owner".to_owned()]));
        Principal { tenant, user: Some("u".into()), roles, claims: Arc::new(claims), expires: None, recheck: None }
    }

    #[test]
    fn a_user_gets_into_listed_tenants_with_the_roles_of_that_tenant_and_back_home() {
        let catalog = tidewire_core::catalog::parse("[app]\nname = \"x\"\ntenant = \"orgId\"\n").expect("catalog");
        let tenant = |name: &str| TenantId::new(name).expect("tenant");
        let flat = user(&json!(["b", "c"]));
        let in_b = enter(&catalog, &flat, &tenant("b")).expect("listed");
        assert_eq!((in_b.tenant.as_str(), &*in_b.roles), ("b", &["owner".to_owned()][..]));
        assert_eq!((&in_b.claims["tenant"], &in_b.claims["orgId"]), (&json!("b"), &json!("b")));
        assert!(enter(&catalog, &flat, &tenant("d")).is_none());
        assert!(enter(&catalog, &user(&Value::Null), &tenant("b")).is_none());
        let each = user(&json!({ "a": ["ghost"], "b": ["viewer"], "c": [] }));
        let in_b = enter(&catalog, &each, &tenant("b")).expect("listed");
        assert_eq!(&*in_b.roles, ["viewer"]);
        let in_c = enter(&catalog, &in_b, &tenant("c")).expect("from one to the next");
        assert!(in_c.roles.is_empty());
        let back = enter(&catalog, &in_c, &tenant("a")).expect("home");
        assert_eq!((&*back.roles, &back.claims["orgId"]), (&["owner".to_owned()][..], &json!("a")));
        let visitor = Principal { user: None, ..flat };
        assert!(enter(&catalog, &visitor, &tenant("b")).is_none());
    }
}
