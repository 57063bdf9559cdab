//! What many completions of a problem amount to, without their texts.

use serde::{Deserialize, Serialize};

/// The completions of a problem in a run by [waves](crate::record::Header::wave).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// One [`Letter`] per completion, by index.
    pub letters: String,
    /// How many right answers were given once, twice, …: pairs `[n, answers]`, where `answers` right answers were given
    /// by `n` completions each, in ascending order of `n`.
    pub repeats: Vec<[u64; 2]>,
    /// The waves, in order.
    pub waves: Vec<WaveRecord>,
    /// SHA-256 of the tokens of all completions, `u32` little-endian, each completion after its length. A run that
    /// gives the same hash has sampled the same.
    pub tokens_sha256: String,
}

/// Means over the tokens of a wave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaveRecord {
    /// Tokens chosen.
    pub tokens: u64,
    /// Mean log-probability in the model's distribution.
    pub mean_log_prob: f64,
    /// Mean entropy of the new distribution.
    pub mean_entropy: f64,
    /// Mean KL(new ‖ reference).
    pub mean_kl: f64,
    /// Mean of `‖deep − expected deep‖ / ‖deep‖` over the tokens that have one.
    pub mean_relative_novelty: Option<f64>,
}

/// What one completion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letter {
    /// `N`: a right answer that no earlier completion gave and that the model was not trained on.
    New,
    /// `n`: a right answer that was [`New`](Self::New) earlier.
    NewAgain,
    /// `T`: a right answer that no earlier completion gave and that the model was trained on.
    Trained,
    /// `t`: a right answer that was [`Trained`](Self::Trained) earlier.
    TrainedAgain,
    /// `x`: not right.
    Wrong,
}

impl Letter {
    const ALL: [Self; 5] =
        [Self::New, Self::NewAgain, Self::Trained, Self::TrainedAgain, Self::Wrong];

    /// The letter.
    pub fn letter(self) -> char {
        match self {
            Self::New => 'N',
            Self::NewAgain => 'n',
            Self::Trained => 'T',
            Self::TrainedAgain => 't',
            Self::Wrong => 'x',
        }
    }

    /// What a letter stands for.
    pub fn of(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.letter() == letter)
    }
}

/// Shares of the first `n` completions of a tally.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Right completions.
    pub valid: f64,
    /// Different right answers.
    pub distinct: f64,
    /// Different right answers that the model was not trained on: the score of arXiv 2504.15266.
    pub new: f64,
    /// Right completions whose answer the model was trained on.
    pub trained: f64,
}

impl Tally {
    /// The score of the first `n` completions, or of all if there are fewer. All zero without completions.
    pub fn score(&self, n: usize) -> Score {
        let mut score = Score::default();
        let mut count = 0usize;
        for letter in self.letters.chars().take(n).filter_map(Letter::of) {
            let one = |is: bool| f64::from(u8::from(is));
            count += 1;
            score.valid += one(letter != Letter::Wrong);
            score.distinct += one(matches!(letter, Letter::New | Letter::Trained));
            score.new += one(letter == Letter::New);
            score.trained += one(matches!(letter, Letter::Trained | Letter::TrainedAgain));
        }
        let share = |sum: f64| sum / count.max(1) as f64;
        Score {
            valid: share(score.valid),
            distinct: share(score.distinct),
            new: share(score.new),
            trained: share(score.trained),
        }
    }

    /// The different right answers to expect among the first `n` completions if all completions had come in random order,
    /// as a share of `n`: `Σ over answers (1 − C(N − t, n) / C(N, n)) / n` for answers given `t` times among `N`
    /// completions (Hurlbert, *The Nonconcept of Species Diversity*, 1971). Of independent draws this is the coupon
    /// collector's line. `None` without completions, or with fewer than `n`.
    pub fn in_random_order(&self, n: usize) -> Option<f64> {
        let all = self.letters.chars().count();
        if n == 0 || n > all {
            return None;
        }
        let missed = |times: u64| {
            // Each factor is the chance that one more of the `times` is not among the n.
            let factor = |at: usize| ((all - n) as f64 - at as f64).max(0.0) / (all - at) as f64;
            (0..(times as usize).min(all)).map(factor).product::<f64>()
        };
        let found =
            self.repeats.iter().map(|&[times, answers]| answers as f64 * (1.0 - missed(times)));
        Some(found.sum::<f64>() / n as f64)
    }

    /// For each wave of `wave` completions the share of its right completions whose answer was given before, in this wave
    /// or an earlier one. `None` for a wave without right completions.
    pub fn repetitions(&self, wave: usize) -> Vec<Option<f64>> {
        let letters: Vec<Letter> = self.letters.chars().filter_map(Letter::of).collect();
        let share = |wave: &[Letter]| {
            let count = |kinds: &[Letter]| wave.iter().filter(|one| kinds.contains(one)).count();
            let again = count(&[Letter::NewAgain, Letter::TrainedAgain]);
            let right = wave.len() - count(&[Letter::Wrong]);
            (right > 0).then(|| again as f64 / right as f64)
        };
        letters.chunks(wave.max(1)).map(share).collect()
    }

    /// The effective number of right answers: the exponential of the entropy of their frequencies among the right
    /// completions (arXiv 2605.11128 divides it by the number of all right answers). 0 without right completions.
    pub fn effective_answers(&self) -> f64 {
        let total: u64 = self.repeats.iter().map(|[times, answers]| times * answers).sum();
        if total == 0 {
            return 0.0;
        }
        let entropy = self.repeats.iter().map(|&[times, answers]| {
            let share = times as f64 / total as f64;
            -(answers as f64) * share * share.ln()
        });
        entropy.sum::<f64>().exp()
    }

    /// What is wrong with a tally of a run with `samples` completions in waves of `wave`, if anything.
    ///
    /// # Errors
    ///
    /// A description of what the tally has.
    pub fn check(&self, samples: usize, wave: usize) -> Result<(), String> {
        let letters = self.letters.chars().count();
        if letters != samples {
            return Err(format!("one with {letters} letters in a file with {samples} completions"));
        }
        if let Some(letter) = self.letters.chars().find(|&letter| Letter::of(letter).is_none()) {
            return Err(format!("one with the letter {letter:?}"));
        }
        let [mut right, mut different] = [0, 0];
        for letter in self.letters.chars().filter_map(Letter::of) {
            right += u64::from(letter != Letter::Wrong);
            different += u64::from(matches!(letter, Letter::New | Letter::Trained));
        }
        let repeats = self.repeats.iter().try_fold([0u64, 0], |[all, answers], &[times, more]| {
            Some([all.checked_add(times.checked_mul(more)?)?, answers.checked_add(more)?])
        });
        if repeats != Some([right, different]) {
            return Err(format!(
                "one whose counts are not those of {different} answers in {right} right completions"
            ));
        }
        let waves = samples.div_ceil(wave.max(1));
        if self.waves.len() != waves {
            return Err(format!("one with {} waves of {waves}", self.waves.len()));
        }
        let finite = |wave: &WaveRecord| {
            let figures = [wave.mean_log_prob, wave.mean_entropy, wave.mean_kl];
            let all = figures.into_iter().chain(wave.mean_relative_novelty);
            wave.tokens > 0 && all.into_iter().all(|figure| figure.abs() < 1e15)
        };
        match self.waves.iter().position(|wave| !finite(wave)) {
            Some(place) => Err(format!("one whose wave {place} is not possible")),
            None => Ok(()),
        }
    }
}
