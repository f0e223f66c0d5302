//! "Did you mean": the known name that is nearest to one that was not found.

/// Names longer than this are not compared. No name that Tidewire accepts is longer.
const LONGEST: usize = 128;

/// The name of `from` that `name` was probably meant to be: at most two typing slips away (one for names of up to three bytes, three
/// from twelve bytes on), whatever the case of ASCII letters. Among equally near ones the first by byte order, so that the answer
/// does not depend on the order of a hash map. A slip is a letter too many, missing, wrong, or swapped with its neighbour.
pub fn suggest<'a>(name: &str, from: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match name.len() {
        0 => return None,
        1..=3 => 1,
        4..=11 => 2,
        _ => 3,
    };
    let near = |candidate: &'a str| Some((distance(name.as_bytes(), candidate.as_bytes(), limit)?, candidate));
    from.filter_map(near).min().map(|(_, candidate)| candidate)
}

/// The optimal string alignment distance, or nothing when it is over `limit`. Only the cells within `limit` of the diagonal can
/// matter, so a comparison costs `length * limit` steps: cheap enough for an error path that strangers can reach.
fn distance(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit || a.len() > LONGEST || b.len() > LONGEST {
        return None;
    }
    let far = limit + 1;
    let mut before = [far; LONGEST + 1];
    let mut above = [far; LONGEST + 1];
    for (column, cell) in above.iter_mut().enumerate().take(limit.min(b.len()) + 1) {
        *cell = column;
    }
    for row in 1..=a.len() {
        let mut current = [far; LONGEST + 1];
        if row <= limit {
            current[0] = row;
        }
        for column in row.saturating_sub(limit).max(1)..=(row + limit).min(b.len()) {
            let (left, right) = (a[row - 1], b[column - 1]);
            let replaced = above[column - 1] + usize::from(!left.eq_ignore_ascii_case(&right));
            let mut best = replaced.min(above[column] + 1).min(current[column - 1] + 1);
            if row > 1
                && column > 1
                && left.eq_ignore_ascii_case(&b[column - 2])
                && a[row - 2].eq_ignore_ascii_case(&right)
            {
                best = best.min(before[column - 2] + 1);
            }
            current[column] = best.min(far);
        }
        before = above;
        above = current;
    }
    Some(above[b.len()]).filter(|distance| *distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_name() {
        let names = ["rooms", "data", "visible", "perTenant", "berth:statusChanged", "lead.created"];
        let find = |name| suggest(name, names.into_iter());
        assert_eq!(find("romms"), Some("rooms"));
        assert_eq!(find("Rooms"), Some("rooms"));
        assert_eq!(find("dtaa"), Some("data"));
        assert_eq!(find("per_tenant"), Some("perTenant"));
        assert_eq!(find("berth:statuschange"), Some("berth:statusChanged"));
        assert_eq!(find("lead:created"), Some("lead.created"));
    }

    #[test]
    fn something_else_finds_nothing() {
        let names = ["rooms", "data", "to"];
        for other in ["", "queue", "do_it", "x", &"r".repeat(10_000)] {
            assert_eq!(suggest(other, names.into_iter()), None, "{other}");
        }
    }

    #[test]
    fn the_nearest_wins_then_byte_order() {
        assert_eq!(suggest("jobs", ["jobx", "joba", "jobxy"].into_iter()), Some("joba"));
        assert_eq!(suggest("emails", ["mail", "email"].into_iter()), Some("email"));
    }
}
