//! Counts completions for a tally.

use std::collections::{BTreeMap, HashMap};

use esamp::TokenId;
use sha2::{Digest, Sha256};

use crate::{
    hash::hexadecimal,
    tally::{Letter, Tally, WaveRecord},
    tasks::Verdict,
};

/// Makes a [`Tally`] of completions that come in order.
#[derive(Default)]
pub struct Counter {
    letters: String,
    /// How often each right answer was given.
    answers: HashMap<String, u64>,
    waves: Vec<WaveRecord>,
    tokens: Sha256,
}

impl Counter {
    /// Adds a completion. A right one without a [mode](Verdict::mode) counts by its answer.
    pub fn add(&mut self, verdict: &Verdict, tokens: &[TokenId]) {
        let letter = if verdict.correct == Some(true) {
            let answer = verdict.mode.as_ref().or(verdict.answer.as_ref());
            let times = self.answers.entry(answer.cloned().unwrap_or_default()).or_default();
            *times += 1;
            match (verdict.trained, *times == 1) {
                (false, true) => Letter::New,
                (false, false) => Letter::NewAgain,
                (true, true) => Letter::Trained,
                (true, false) => Letter::TrainedAgain,
            }
        } else {
            Letter::Wrong
        };
        self.letters.push(letter.letter());
        self.tokens.update((tokens.len() as u32).to_le_bytes());
        for token in tokens {
            self.tokens.update(token.to_le_bytes());
        }
    }

    /// Ends a wave.
    pub fn end_wave(&mut self, wave: WaveRecord) {
        self.waves.push(wave);
    }

    /// The tally of all.
    pub fn tally(self) -> Tally {
        let mut repeats = BTreeMap::<u64, u64>::new();
        for times in self.answers.into_values() {
            *repeats.entry(times).or_default() += 1;
        }
        Tally {
            letters: self.letters,
            repeats: repeats.into_iter().map(|(times, answers)| [times, answers]).collect(),
            waves: self.waves,
            tokens_sha256: hexadecimal(&self.tokens.finalize()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;
    use crate::tally::Score;

    fn right(answer: &str, trained: bool) -> Verdict {
        Verdict { trained, ..Verdict::one_of_many(Some(answer.to_owned())) }
    }

    fn counted() -> Tally {
        let mut counter = Counter::default();
        let wrong = Verdict::one_of_many(None);
        for verdict in [
            right("a", false),
            wrong,
            right("b", true),
            right("a", false),
            right("b", true),
            right("c", false),
        ] {
            counter.add(&verdict, &[1, 2]);
        }
        for tokens in [8, 4] {
            counter.end_wave(WaveRecord {
                tokens,
                mean_log_prob: -1.0,
                mean_entropy: 1.0,
                mean_kl: 0.0,
                mean_relative_novelty: None,
            });
        }
        counter.tally()
    }

    #[test]
    fn by_hand() {
        let tally = counted();
        assert_eq!(tally.letters, "NxTntN");
        assert_eq!(tally.repeats, [[1, 1], [2, 2]]);
        let sixth = |valid, distinct, new, trained| Score {
            valid: valid / 6.0,
            distinct: distinct / 6.0,
            new: new / 6.0,
            trained: trained / 6.0,
        };
        assert_eq!(tally.score(6), sixth(5.0, 3.0, 2.0, 2.0));
        assert_eq!(tally.score(99), tally.score(6));
        assert_eq!(tally.score(2), Score { valid: 0.5, distinct: 0.5, new: 0.5, trained: 0.0 });
        assert_eq!(tally.score(0), Score::default());
        // Waves NxTn and tN: one of three right ones is a repetition, then one of two.
        assert_eq!(tally.repetitions(4), [Some(1.0 / 3.0), Some(0.5)]);
        assert_eq!(tally.repetitions(2), [Some(0.0), Some(0.5), Some(0.5)]);
        // Two of six in random order: an answer given once is missed with 5/6·4/5, one given twice with 4/6·3/5.
        let two = (1.0 - 4.0 / 6.0) + 2.0 * (1.0 - 4.0 / 6.0 * 3.0 / 5.0);
        assert!((tally.in_random_order(2).unwrap() - two / 2.0).abs() < 1e-12);
        assert_eq!(tally.in_random_order(6), Some(0.5), "all of them, in whatever order");
        assert_eq!((tally.in_random_order(7), tally.in_random_order(0)), (None, None));
        // Shares 2/5, 2/5, 1/5.
        let entropy = -(2.0 * 0.4 * 0.4f64.ln() + 0.2 * 0.2f64.ln());
        assert!((tally.effective_answers() - entropy.exp()).abs() < 1e-12);
        assert_eq!(Counter::default().tally().effective_answers(), 0.0);
        // SHA-256 of six times the bytes 2 0 0 0 1 0 0 0 2 0 0 0, from sha256sum.
        let hash = "8fcb495dc334d8b8f8bc2e5a6bc07d4cab3ac8ec47999e284af10ac9175accee";
        assert_eq!(tally.tokens_sha256, hash);
    }

    #[test]
    fn a_tally_of_another_run_is_refused() {
        let tally = counted();
        assert_eq!(tally.check(6, 4), Ok(()));
        assert_eq!(
            tally.check(5, 4),
            Err("one with 6 letters in a file with 5 completions".into())
        );
        assert_eq!(tally.check(6, 6), Err("one with 2 waves of 1".into()));
        let with = |change: &dyn Fn(&mut Tally)| {
            let mut tally = tally.clone();
            change(&mut tally);
            tally.check(6, 4).unwrap_err()
        };
        assert_eq!(with(&|tally| tally.letters = "NxTntq".into()), "one with the letter 'q'");
        let counts = "one whose counts are not those of 3 answers in 5 right completions";
        assert_eq!(with(&|tally| tally.repeats[0] = [1, 2]), counts);
        assert_eq!(with(&|tally| tally.repeats[0] = [u64::MAX, 2]), counts);
        assert_eq!(
            with(&|tally| tally.waves[1].mean_kl = f64::NAN),
            "one whose wave 1 is not possible"
        );
    }
}
