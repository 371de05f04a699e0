//! Medians and ratios of result lines.
//!
//! A line is `target TARGET nodes N round R what W` and more `key value` pairs. Ratios are taken within a
//! round, where both sides saw the same machine, and their median is printed.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;

/// The figures, in the order in which they are shown, with the number of decimals.
const FIGURES: [(&str, usize); 12] = [
    ("per_s", 0),
    ("p50_us", 0),
    ("p99_us", 0),
    ("p999_us", 0),
    ("cpu_s_per_100k", 2),
    ("rss_mib", 1),
    ("kib_each", 1),
    ("mib_s", 0),
    ("failover_ms", 0),
    ("restart_ms", 0),
    ("late_p99_ms", 0),
    ("failures", 0),
];

type Values = BTreeMap<String, f64>;

/// Results of one thing that was measured: target → round → figures.
type Rounds = BTreeMap<String, BTreeMap<u64, Values>>;

/// Prints one row for each thing and target; a cell is a median, its extremes and the ratio to the base.
pub fn print(file: &Path, base: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut order = Vec::new();
    let mut all: BTreeMap<(String, String), Rounds> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let (what, target, round, values) =
            parse(line).with_context(|| format!("line {} of {}: {line}", number + 1, file.display()))?;
        if !order.contains(&what) {
            order.push(what.clone());
        }
        all.entry(what).or_default().entry(target).or_default().insert(round, values);
    }
    // Only those that something has.
    let has = |figure: &str| {
        all.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values).any(|v| v.contains_key(figure))
    };
    let figures: Vec<(&str, usize)> = FIGURES.into_iter().filter(|(figure, _)| has(figure)).collect();
    let heads: Vec<&str> = figures.iter().map(|(figure, _)| *figure).collect();
    println!("Each cell: median (min..max) and the ratio to {base} in the same round.\n");
    println!("| nodes | what | target | {} |", heads.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(heads.len()));
    for what in order {
        let rounds = &all[&what];
        for (target, of_target) in rounds {
            let of_base = rounds.get(base).filter(|_| target != base);
            let cells: Vec<String> = figures
                .iter()
                .map(|(figure, decimals)| cell(of_target, of_base, figure, *decimals))
                .collect();
            println!("| {} | {} | {target} | {} |", what.0, what.1, cells.join(" | "));
        }
    }
    Ok(())
}

/// Empty if there is no such figure.
fn cell(
    of_target: &BTreeMap<u64, Values>,
    of_base: Option<&BTreeMap<u64, Values>>,
    figure: &str,
    decimals: usize,
) -> String {
    let values: Vec<f64> = of_target.values().filter_map(|v| v.get(figure)).copied().collect();
    if values.is_empty() {
        return String::new();
    }
    let (min, max) = (
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    );
    let ratio = |(round, v): (&u64, &Values)| Some(v.get(figure)? / of_base?.get(round)?.get(figure)?);
    let ratios: Vec<f64> = of_target.iter().filter_map(ratio).filter(|ratio| ratio.is_finite()).collect();
    let mut cell = format!("{:.decimals$} ({min:.decimals$}..{max:.decimals$})", median(values));
    if !ratios.is_empty() {
        cell += &format!(" {:.2}x", median(ratios));
    }
    cell
}

#[allow(clippy::type_complexity)]
fn parse(line: &str) -> anyhow::Result<((String, String), String, u64, Values)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    anyhow::ensure!(words.len().is_multiple_of(2), "an odd number of words");
    let pairs: BTreeMap<&str, &str> = words.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    let text = |key: &str| pairs.get(key).map(|v| (*v).to_owned()).with_context(|| format!("no {key}"));
    let values = pairs.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.parse().ok()?)));
    let round = text("round")?.parse()?;
    Ok(((text("nodes")?, text("what")?), text("target")?, round, values.collect()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_pairs_of_words_and_what_is_no_number_is_no_figure() {
        let line = "target weft nodes 3 round 2 what put-c64 per_s 100 p50_us 7";
        let (what, target, round, values) = parse(line).expect("parses");
        assert_eq!((what.0.as_str(), what.1.as_str(), target.as_str(), round), ("3", "put-c64", "weft", 2));
        assert_eq!(values["per_s"], 100.0);
        assert!(!values.contains_key("what"));
        assert!(parse("target weft nodes").is_err());
        assert!(parse("target weft nodes 3 what put").is_err(), "no round");
    }

    #[test]
    fn a_cell_compares_within_rounds_and_is_empty_without_the_figure() {
        let rounds = |values: [f64; 2]| -> BTreeMap<u64, Values> {
            values.iter().enumerate().map(|(n, v)| (n as u64, [("per_s".to_owned(), *v)].into())).collect()
        };
        let (weft, etcd) = (rounds([200.0, 90.0]), rounds([100.0, 30.0]));
        assert_eq!(cell(&weft, Some(&etcd), "per_s", 0), "145 (90..200) 2.50x");
        assert_eq!(cell(&weft, None, "per_s", 0), "145 (90..200)");
        assert_eq!(cell(&weft, Some(&etcd), "p50_us", 0), "");
    }

    #[test]
    fn a_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
    }
}
