//! A line of the file with its checksum, and whether its content is possible.
//!
//! A sealed line is a JSON object whose last key is `checksum`: the first 16 hexadecimal digits of the SHA-256 of the
//! object without that key. Files that were begun before there were checksums have none, and are still read.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::{CompletionRecord, Header, Line, ProblemRecord, TOKEN_SAMPLE, Tally, TokenRecord};
use crate::{hash::hexadecimal, shard::Shard};

/// What separates the object from its checksum. It cannot occur in a string of JSON, where quotes are escaped.
const KEY: &str = ",\"checksum\":\"";
/// Digits of a checksum: enough against damage, which is all that it is for.
const DIGITS: usize = 16;

/// Appends the checksum to a JSON object that is not empty.
pub fn seal(object: &str) -> String {
    let body = object.strip_suffix('}').unwrap_or(object);
    format!("{body}{KEY}{}\"}}", checksum(object))
}

/// A line without its checksum.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsealed<'l> {
    /// The JSON object.
    pub object: Cow<'l, str>,
    /// Whether it had a checksum.
    pub is_sealed: bool,
}

/// Removes and verifies the checksum, if the line has one.
///
/// # Errors
///
/// A description of a line that does not have the checksum that it ends with.
pub fn unseal(line: &str) -> Result<Unsealed<'_>, String> {
    let Some((body, end)) = line.rsplit_once(KEY) else {
        return Ok(Unsealed { object: line.into(), is_sealed: false });
    };
    let object = format!("{body}}}");
    let (found, written) = (checksum(&object), end.strip_suffix("\"}").unwrap_or(end));
    if found == written {
        Ok(Unsealed { object: object.into(), is_sealed: true })
    } else {
        Err(format!("one of checksum {found} that ends with the checksum {written}"))
    }
}

/// The object of a header without its [shard](Header::shard), to the byte: parsing it and writing it again could change
/// the last digit of a fraction. `None` if it does not end as this program writes it.
pub fn without_shard(object: &str, shard: Shard) -> Option<String> {
    // As with `KEY`: a string of JSON cannot contain it.
    let rest = object.strip_suffix(&format!(",\"shard\":\"{shard}\"}}"))?;
    Some(format!("{rest}}}"))
}

fn checksum(object: &str) -> String {
    hexadecimal(&Sha256::digest(object)[..DIGITS / 2])
}

/// Reads the line of a record.
///
/// # Errors
///
/// A description of a line with a wrong checksum, without one although the header has one (`is_sealed`), that is no
/// record, or that a run with this header cannot have written.
pub fn parse_record(line: &str, header: &Header, is_sealed: bool) -> Result<ProblemRecord, String> {
    let line = unseal(line)?;
    if is_sealed && !line.is_sealed {
        return Err("one without a checksum in a file with checksums".to_owned());
    }
    match serde_json::from_str(&line.object) {
        Ok(Line::Problem(record)) => check(&record, header).map(|()| *record),
        Ok(Line::Header(_)) => Err("a second header".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The largest magnitude of a figure. What a report computes from figures, sums and squares, stays far from infinity.
const LARGEST: f64 = 1e15;
/// What rounding may add to a figure that cannot be positive, or take from one that cannot be negative.
const ROUNDING: f64 = 1e-3;

/// Refuses a record that a run with this header cannot have written: means over its tokens would have no meaning, and
/// some figures of a report no end.
fn check(record: &ProblemRecord, header: &Header) -> Result<(), String> {
    let Some(task) = header.tasks.iter().find(|task| task.name == record.task) else {
        return Err(format!("one of the task {}, which the header does not name", record.task));
    };
    if !header.arms.iter().any(|arm| arm.name == record.arm) {
        return Err(format!("one of the arm {}, which the header does not name", record.arm));
    }
    if record.problem >= header.problems || record.seed >= header.seeds {
        return Err(format!(
            "problem {}, seed {} of {} problems and {} seeds",
            record.problem, record.seed, header.problems, header.seeds
        ));
    }
    let (got, kept) =
        (record.completions.len(), if header.wave.is_some() { 0 } else { header.samples });
    if got != kept {
        return Err(format!("one with {got} completions in a file with {kept}"));
    }
    match (&record.tally, header.wave) {
        (Some(tally), Some(wave)) => return check_tally(record, tally, header, wave, task.tokens),
        (None, None) => {}
        (Some(_), None) => return Err("one with a tally in a file without waves".to_owned()),
        (None, Some(_)) => return Err("one without a tally in a file with waves".to_owned()),
    }
    for (index, completion) in record.completions.iter().enumerate() {
        check_completion(completion, task.tokens, header.model.vocab)
            .map_err(|got| format!("completion {index} with {got}"))?;
    }
    let tokens: usize = record.completions.iter().map(|one| one.tokens.len()).sum();
    if record.totals.tokens != tokens as u64 {
        return Err(format!("a total of {} tokens over {tokens}", record.totals.tokens));
    }
    if record.token_sample.len() > TOKEN_SAMPLE {
        return Err(format!("a sample of {} tokens", record.token_sample.len()));
    }
    record.token_sample.iter().try_for_each(|token| check_token(token, record))
}

fn check_tally(
    record: &ProblemRecord,
    tally: &Tally,
    header: &Header,
    wave: usize,
    most: usize,
) -> Result<(), String> {
    tally.check(header.samples, wave)?;
    let tokens = tally.waves.iter().try_fold(0u64, |sum, wave| sum.checked_add(wave.tokens));
    let most = header.samples.saturating_mul(most) as u64;
    if tokens != Some(record.totals.tokens) || record.totals.tokens > most {
        return Err(format!("a total of {} tokens of at most {most}", record.totals.tokens));
    }
    if !record.token_sample.is_empty() {
        return Err("a sample of tokens in a file with waves".to_owned());
    }
    Ok(())
}

fn check_completion(
    completion: &CompletionRecord,
    most: usize,
    vocab: usize,
) -> Result<(), String> {
    let count = completion.tokens.len();
    if count == 0 || count > most {
        return Err(format!("{count} tokens of 1 to {most}"));
    }
    if let Some(token) = completion.tokens.iter().find(|&&token| token as usize >= vocab) {
        return Err(format!("token {token} of a vocabulary of {vocab}"));
    }
    let not_positive = [
        ("log_prob_sum", completion.log_prob_sum),
        ("sampling_log_prob_sum", completion.sampling_log_prob_sum),
    ];
    let not_negative = [
        ("mean_entropy", Some(completion.mean_entropy)),
        ("mean_reference_entropy", Some(completion.mean_reference_entropy)),
        ("mean_kl", Some(completion.mean_kl)),
        ("mean_candidates", Some(completion.mean_candidates)),
        ("mean_novelty", completion.mean_novelty),
        ("mean_relative_novelty", completion.mean_relative_novelty),
    ];
    let any =
        [("mean_slope", completion.mean_slope), ("mean_sharpening", completion.mean_sharpening)];
    not_positive
        .into_iter()
        .try_for_each(|(name, figure)| within(name, figure, -LARGEST, ROUNDING))?;
    for (figures, least) in [(&not_negative[..], -ROUNDING), (&any, -LARGEST)] {
        for &(name, figure) in figures {
            figure.map_or(Ok(()), |figure| within(name, figure, least, LARGEST))?;
        }
    }
    Ok(())
}

fn check_token(token: &TokenRecord, record: &ProblemRecord) -> Result<(), String> {
    let tokens = record.completions.get(token.completion).map_or(0, |one| one.tokens.len());
    if token.position >= tokens as u64 {
        let (completion, position) = (token.completion, token.position);
        return Err(format!(
            "a token at {position} of completion {completion}, which has {tokens}"
        ));
    }
    [
        ("novelty", token.novelty),
        ("relative_novelty", token.relative_novelty),
        ("surprisal", token.surprisal),
        ("reference_entropy", token.reference_entropy),
    ]
    .into_iter()
    .try_for_each(|(name, figure)| within(name, figure, -ROUNDING, LARGEST))
}

fn within(name: &str, figure: f64, least: f64, most: f64) -> Result<(), String> {
    if (least..=most).contains(&figure) {
        Ok(())
    } else {
        Err(format!("{name} {figure}, which is not in [{least:e}, {most:e}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_digit_is_noticed_wherever_it_is() {
        let object = r#"{"type":"problem","seed":17,"text":"a \",\"checksum\":\" b"}"#;
        let line = seal(object);
        assert_eq!(line.len(), object.len() + KEY.len() + DIGITS + 1);
        assert_eq!(unseal(&line), Ok(Unsealed { object: object.into(), is_sealed: true }));
        assert_eq!(unseal(object), Ok(Unsealed { object: object.into(), is_sealed: false }));
        let key = object.len() - 1..object.len() - 1 + KEY.len();
        for at in (0..line.len()).filter(|at| !key.contains(at)) {
            let mut bytes = line.clone().into_bytes();
            bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(unseal(&changed).is_err(), "{changed}");
        }
        // SHA-256 of "{}", from sha256sum.
        assert_eq!(checksum("{}"), "44136fa355b3678a");
    }
}
