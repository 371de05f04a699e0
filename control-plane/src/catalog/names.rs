//! What to suggest to somebody who named a service that does not exist.

/// Up to `max` of the known names that resemble `name`, the closest first: those within two edits, and
/// those of which one contains the other.
pub fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, max: usize) -> Vec<&'a str> {
    let name = name.to_ascii_lowercase();
    let mut ranked: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|candidate| {
            let lower = candidate.to_ascii_lowercase();
            let edits = edit_distance(&name, &lower, EDITS_MAX);
            let contained = !name.is_empty() && (lower.contains(&name) || name.contains(&lower));
            match edits {
                Some(n) => Some((n, candidate)),
                None if contained => Some((EDITS_MAX + 1, candidate)),
                None => None,
            }
        })
        .collect();
    ranked.sort();
    ranked.into_iter().take(max).map(|(_, n)| n).collect()
}

/// More edits than this are no misspelling.
const EDITS_MAX: usize = 2;

/// Levenshtein distance, or none above `max`.
fn edit_distance(a: &str, b: &str, max: usize) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > max {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    let distance = row[b.len()];
    (distance <= max).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_recognised_closest_first() {
        let known = ["orders", "order", "billing", "user-service"];
        assert_eq!(near("ordes", known, 5), ["order", "orders"]);
        assert_eq!(near("Orders", known, 5), ["orders", "order"]);
        assert_eq!(near("user", known, 5), ["user-service"]);
    }

    #[test]
    fn unrelated_names_are_not_suggested() {
        assert!(near("payments", ["orders", "billing"], 5).is_empty());
        assert!(near("", ["orders"], 5).is_empty());
    }

    #[test]
    fn the_number_of_suggestions_is_bounded() {
        let known = ["aaa1", "aaa2", "aaa3", "aaa4"];
        assert_eq!(near("aaa", known, 2).len(), 2);
    }
}
