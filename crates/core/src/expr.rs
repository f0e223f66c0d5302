//! Conditions in the catalog: CEL (Common Expression Language) over a few named JSON values.
//!
//! An expression is compiled once and evaluated often: once per event and socket for `visible`. Objects are therefore not converted but
//! looked up where they are. Whatever goes wrong in an evaluation (a missing key, a text compared with a number, a result that is no
//! boolean) is an error, and callers take every error as "no": a condition can only be met, never failed open.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, EntryExpr, Expr as Ast, IdedExpr, LiteralValue};
use cel::common::traits::{Container, Indexer, Sizer};
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelNull, CelString, CelUInt, MAP_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError, Program, Value as CelValue};
use serde_json::{Map, Value};

use crate::suggest::suggest;
use crate::{Error, Result};

/// A compiled condition. Keeps its source text.
pub struct Expr {
    source: String,
    program: Program,
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expr").field(&self.source).finish()
    }
}

/// The standard environment is the same for all expressions and costly to build.
static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// What an expression may call beyond operators and the macros `has all exists exists_one map filter`.
const FUNCTIONS: [&str; 9] = ["size", "contains", "startsWith", "endsWith", "string", "int", "uint", "double", "bool"];

impl Expr {
    /// The longest source in bytes.
    pub const MAX_BYTES: usize = 2_000;

    /// Compiles `source`, which may use the variables `allowed`. Code `expr.invalid` when it is over 2,000 bytes, is not CEL, or names an
    /// unknown variable or function.
    pub fn compile(source: &str, allowed: &[&str]) -> Result<Self> {
        let wrong = |what: String| Error::invalid("expr.invalid", what);
        if source.len() > Self::MAX_BYTES {
            return Err(wrong(format!("expected an expression of at most {} bytes", Self::MAX_BYTES)));
        }
        let program = STANDARD.compile(source).map_err(|errors| {
            let first = errors.errors.first().map_or_else(|| errors.to_string(), |error| error.msg.clone());
            wrong(format!("not a CEL expression: {}: {source:?}", first.trim()))
        })?;
        let mut names = Names::default();
        names.visit(program.expression(), &mut Vec::new());
        for (name, known, what) in names
            .variables
            .iter()
            .map(|name| (name, allowed, "variable"))
            .chain(names.functions.iter().map(|name| (name, FUNCTIONS.as_slice(), "function")))
        {
            if !known.contains(name) {
                let hint = suggest(name, known.iter().copied());
                let hint = hint.map_or(String::new(), |hint| format!("; did you mean {hint:?}?"));
                return Err(wrong(format!("unknown {what} {name:?}, expected one of {}{hint}", known.join(", "))));
            }
        }
        Ok(Self { source: source.to_owned(), program })
    }

    /// Whether the condition holds for these variables. Code `expr.failed` for an evaluation that fails or gives no boolean; treat it as "no".
    pub fn eval(&self, vars: &[(&str, &Value)]) -> Result<bool> {
        let failed = |what: &dyn fmt::Display| Error::invalid("expr.failed", format!("{}: {what}", self.source));
        let mut context = Context::with_env(STANDARD.clone());
        for (name, value) in vars {
            context.add_variable_as_val(*name, to_cel(value));
        }
        let result = CelValue::resolve_val(self.program.expression(), &context).map_err(|error| failed(&error))?;
        match result.downcast_ref::<CelBool>() {
            Some(answer) => Ok(*answer.inner()),
            None => Err(failed(&format!("expected true or false, got {}", result.get_type().name()))),
        }
    }

    /// The source text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The fields of the variable called `name` that the expression reads, each once: `roles` and `id` for
    /// `'admin' in user.roles || user.id == data.agentId`. `None` when it uses the variable in another way, so that anything in it may matter.
    pub fn fields_of(&self, name: &str) -> Option<BTreeSet<&str>> {
        let mut found = BTreeSet::new();
        collect_fields(self.program.expression(), name, &mut found).then_some(found)
    }

    /// The string literals that are looked for in `user.roles`: `'admin' in user.roles` and
    /// `user.roles.exists(r, r == 'admin')`. Sorted, each once.
    pub fn roles_mentioned(&self) -> Vec<&str> {
        let mut found = BTreeSet::new();
        collect_roles(self.program.expression(), &mut Vec::new(), &mut found);
        found.into_iter().collect()
    }
}

/// The free names of an expression.
#[derive(Default)]
struct Names<'a> {
    variables: BTreeSet<&'a str>,
    functions: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn visit(&mut self, expr: &'a IdedExpr, bound: &mut Vec<&'a str>) {
        match &expr.expr {
            Ast::Ident(name) if !bound.contains(&name.as_str()) => {
                self.variables.insert(name);
            }
            // Operators are calls of names that no source text can spell, such as `_&&_` and `@in`.
            Ast::Call(call) if call.func_name.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                self.functions.insert(&call.func_name);
            }
            _ => {}
        }
        for (child, names) in children(expr) {
            let before = bound.len();
            bound.extend(names);
            self.visit(child, bound);
            bound.truncate(before);
        }
    }
}

/// The direct parts of an expression, each with the names that a comprehension binds for it.
fn children(expr: &IdedExpr) -> Vec<(&IdedExpr, Vec<&str>)> {
    let free = |expr| (expr, Vec::new());
    match &expr.expr {
        Ast::Call(call) => call.target.iter().map(|target| free(&**target)).chain(call.args.iter().map(free)).collect(),
        Ast::Select(select) => vec![free(&select.operand)],
        Ast::List(list) => list.elements.iter().map(free).collect(),
        Ast::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).map(free).collect(),
        Ast::Struct(fields) => fields.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).map(free).collect(),
        Ast::Comprehension(all) => {
            let mut bound = vec![all.iter_var.as_str(), all.accu_var.as_str()];
            bound.extend(all.iter_var2.as_deref());
            vec![
                free(&all.iter_range),
                free(&all.accu_init),
                (&all.loop_cond, bound.clone()),
                (&all.loop_step, bound.clone()),
                (&all.result, bound),
            ]
        }
        Ast::Unspecified | Ast::Ident(_) | Ast::Literal(_) => Vec::new(),
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// Answers false when the variable is used as a whole. A comprehension that binds the same name is taken for such a use.
fn collect_fields<'a>(expr: &'a IdedExpr, variable: &str, found: &mut BTreeSet<&'a str>) -> bool {
    match &expr.expr {
        Ast::Ident(name) => name != variable,
        Ast::Select(select) if matches!(&select.operand.expr, Ast::Ident(name) if name == variable) => {
            found.insert(&select.field);
            true
        }
        _ => children(expr)
            .into_iter()
            .all(|(child, bound)| !bound.contains(&variable) && collect_fields(child, variable, found)),
    }
}

fn collect_roles<'a>(expr: &'a IdedExpr, role_names: &mut Vec<&'a str>, found: &mut BTreeSet<&'a str>) {
    let is_role =
        |expr: &IdedExpr, names: &[&str]| matches!(&expr.expr, Ast::Ident(name) if names.contains(&name.as_str()));
    if let Ast::Call(CallExpr { func_name, args, .. }) = &expr.expr
        && let [left, right] = args.as_slice()
    {
        match func_name.as_str() {
            "@in" if is_user_roles(right) => found.extend(text_literals(left)),
            "@in" if is_role(left, role_names) => found.extend(text_literals(right)),
            "_==_" | "_!=_" if is_role(left, role_names) => found.extend(text_literals(right)),
            "_==_" | "_!=_" if is_role(right, role_names) => found.extend(text_literals(left)),
            _ => {}
        }
    }
    let over_roles = matches!(&expr.expr, Ast::Comprehension(all) if is_user_roles(&all.iter_range));
    let before = role_names.len();
    if let Ast::Comprehension(all) = &expr.expr
        && over_roles
    {
        role_names.push(&all.iter_var);
    }
    for (child, _) in children(expr) {
        collect_roles(child, role_names, found);
    }
    role_names.truncate(before);
}

fn is_user_roles(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Ast::Select(select) if select.field == "roles"
        && matches!(&select.operand.expr, Ast::Ident(name) if name == "user"))
}

fn text_literals(expr: &IdedExpr) -> Vec<&str> {
    match &expr.expr {
        Ast::Literal(LiteralValue::String(text)) => vec![text.inner()],
        Ast::List(list) => list.elements.iter().flat_map(text_literals).collect(),
        _ => Vec::new(),
    }
}

/// Scalars and lists become CEL values that borrow their text; an object stays what it is.
fn to_cel(value: &Value) -> Box<dyn Val + '_> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Box::new(CelInt::from(integer)),
            (None, Some(large)) => Box::new(CelUInt::from(large)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Array(items) => Box::new(CelList::from(items.iter().map(to_cel).collect::<Vec<_>>())),
        Value::Object(fields) => Box::new(Object(fields)),
    }
}

/// A JSON object as a CEL map that converts a field when it is asked for. It equals nothing: compare fields.
#[derive(Clone, Debug)]
struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    fn field(&self, key: &dyn Val) -> Result<Box<dyn Val + 'a>, ExecutionError> {
        let Some(key) = key.downcast_ref::<CelString>() else {
            let got = key.get_type().name().to_owned();
            return Err(ExecutionError::UnexpectedType { got, want: "string".to_owned() });
        };
        self.0.get(key.inner()).map(to_cel).ok_or_else(|| ExecutionError::no_such_key(key.inner()))
    }
}

impl Val for Object<'_> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Container for Object<'_> {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(key.downcast_ref::<CelString>().is_some_and(|key| self.0.contains_key(key.inner())))
    }
}

impl Indexer for Object<'_> {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.field(key).map(CowVal::Owned)
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.field(key).map(|value| value as Box<dyn Val + 'v>)
    }
}

impl Sizer for Object<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(i64::try_from(self.0.len()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn eval(source: &str) -> Result<bool> {
        let user = json!({ "id": "u1", "tenant": "t1", "roles": ["agent", "admin"], "superAdmin": true, "level": 3 });
        let data = json!({
            "agentId": "u1", "amount": 10.5, "count": 2, "big": u64::MAX, "company": "", "nothing": null, "on": false,
            "deep": { "list": [{ "id": "x" }] },
        });
        Expr::compile(source, &["user", "data"])?.eval(&[("user", &user), ("data", &data)])
    }

    #[test]
    fn conditions_of_the_five_systems() {
        for yes in [
            "'admin' in user.roles || user.id == data.agentId",
            "user.superAdmin",
            "user.superAdmin && user.level >= 3",
            "data.company == ''",
            "!(data.company != '')",
            "data.amount > 10",
            "data.count < 2.5 && data.count == 2",
            "data.big > 5",
            "has(data.agentId) && !has(data.missing)",
            "data.deep.list[0].id == 'x'",
            "'agentId' in data && !('x' in data)",
            "user.roles.exists(r, r in ['admin', 'owner'])",
            "size(user.roles) == 2 && user.id.startsWith('u')",
            "data.nothing == null",
            "user.id in ['u1', 'u2']",
            "data.on ? false : true",
        ] {
            assert!(eval(yes).expect(yes), "{yes}");
        }
        for no in ["'owner' in user.roles", "data.on", "data.agentId == 'u2'", "user.id != data.agentId"] {
            assert!(!eval(no).expect(no), "{no}");
        }
    }

    #[test]
    fn the_fields_that_matter_are_known_or_all_of_them_do() {
        let fields = |source: &str| {
            let expr = Expr::compile(source, &["user", "data"]).expect(source);
            expr.fields_of("user").map(|fields| fields.into_iter().collect::<Vec<_>>().join(" "))
        };
        for (source, expected) in [
            ("'admin' in user.roles", "roles"),
            ("user.roles.exists(r, r in ['admin', data.role])", "roles"),
            ("size(user.roles) > 1 && has(user.team)", "roles team"),
            ("'admin' in user.roles || user.id == data.agentId", "id roles"),
            ("user.address.city == 'x'", "address"),
            ("data.user == 'roles'", ""),
            ("[1].exists(r, data.on)", ""),
        ] {
            assert_eq!(fields(source).as_deref(), Some(expected), "{source}");
        }
        for source in ["data.x in user", "user['roles'] == data.roles", "[user].exists(u, u.id == 'x')", "user == data"]
        {
            assert_eq!(fields(source), None, "{source}");
        }
    }

    #[test]
    fn what_cannot_be_decided_is_an_error() {
        for bad in [
            "data.missing == 1",
            "data.count",
            "data.company > 1",
            "user.roles",
            "data.on && data.missing || data.missing",
            "data.deep.list[7].id == 'x'",
        ] {
            assert_eq!(eval(bad).expect_err(bad).code(), "expr.failed", "{bad}");
        }
        let error = eval("data.count").expect_err("integer");
        assert_eq!(error.detail(), "data.count: expected true or false, got int");
    }

    #[test]
    fn nonsense_does_not_compile() {
        let code = |source: &str| Expr::compile(source, &["user", "data"]).expect_err(source);
        for bad in [
            "",
            "data.",
            "data.x = 1",
            "'admin' in",
            "((((",
            "data.x == 'a",
            "\u{0}",
            "a b c",
            "))",
            "{",
            "[1,",
            "data.x ? 1",
            "\"\\q\"",
        ] {
            assert_eq!(code(bad).code(), "expr.invalid", "{bad}");
        }
        assert_eq!(
            code("date.x == 1").detail(),
            "unknown variable \"date\", expected one of user, data; did you mean \"data\"?"
        );
        assert!(code("user.id.startWith('a')").detail().starts_with("unknown function \"startWith\""));
        assert_eq!(code(&"(".repeat(1_900)).code(), "expr.invalid");
        assert_eq!(code(&"x".repeat(3_000)).code(), "expr.invalid");
        assert!(Expr::compile("user.roles.all(r, r != data.x)", &["user", "data"]).is_ok());
    }

    #[test]
    fn the_roles_it_mentions_are_known() {
        let roles = |source: &str| {
            let expr = Expr::compile(source, &["user", "data"]).expect(source);
            expr.roles_mentioned().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(roles("'admin' in user.roles || ('agent' in user.roles && data.kind == 'x')"), ["admin", "agent"]);
        assert_eq!(roles("user.roles.exists(r, r == 'owner' || r in ['a', 'b'])"), ["a", "b", "owner"]);
        assert_eq!(roles("'x' in data.roles"), Vec::<String>::new());
        assert_eq!(Expr::compile("true", &[]).expect("true").source(), "true");
    }

    #[test]
    fn an_expression_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Expr>();
    }
}
