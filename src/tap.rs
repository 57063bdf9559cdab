//! Taps: how a model exposes its hidden states.
//!
//! burn modules have no forward hooks, so the model calls the tap itself, with one line per site.
//!
//! ```
//! use esamp::{HiddenStateTap, TapSite};
//! # use burn::tensor::Tensor;
//! # struct Block;
//! # impl Block { fn forward(&self, x: Tensor<3>) -> Tensor<3> { x } }
//! # struct Model { blocks: Vec<Block>, norm: Block }
//! # impl Model {
//! fn forward(&self, mut hidden: Tensor<3>, tap: &mut dyn HiddenStateTap) -> Tensor<3> {
//!     for (i, block) in self.blocks.iter().enumerate() {
//!         hidden = block.forward(hidden);
//!         tap.record(TapSite::AfterBlock(i), &hidden); // <- one line
//!     }
//!     let hidden = self.norm.forward(hidden);
//!     tap.record(TapSite::HeadInput, &hidden); // <- and one more
//!     hidden
//! }
//! # }
//! ```

use burn::tensor::Tensor;

use crate::hidden::{HiddenError, HiddenStates, TapSite};

/// Receives hidden states during a model's forward pass.
///
/// The model calls [`record`](Self::record) once per site and forward pass. A call costs nothing unless the tap wants
/// the site. A model that has a cost for providing a state checks [`wants`](Self::wants) first.
///
/// [`PairTap`] is the tap of a decode step. A custom tap can observe any other site:
///
/// ```
/// use burn::tensor::Tensor;
/// use esamp::{HiddenStateTap, TapSite};
///
/// /// The norm of the residual stream after each block, at the last position of each row.
/// #[derive(Default)]
/// struct Lengths(Vec<(usize, Tensor<2>)>);
///
/// impl HiddenStateTap for Lengths {
///     fn wants(&self, site: TapSite) -> bool {
///         matches!(site, TapSite::AfterBlock(_))
///     }
///
///     fn record(&mut self, site: TapSite, hidden: &Tensor<3>) {
///         if let TapSite::AfterBlock(block) = site {
///             let [rows, seq, d_model] = hidden.dims();
///             let last = hidden.clone().narrow(1, seq - 1, 1).reshape([rows, d_model]);
///             self.0.push((block, last.square().sum_dim(1).sqrt()));
///         }
///     }
/// }
/// ```
pub trait HiddenStateTap {
    /// Whether this tap uses the state at `site`.
    fn wants(&self, site: TapSite) -> bool;

    /// Whether this tap needs the states of all positions of a forward pass instead of only the last one. The default
    /// is false. Taps that return true are used only during prefill, for a warm-up on the prompt.
    fn wants_all_positions(&self) -> bool {
        false
    }

    /// Passes the hidden state at `site`, `[batch, seq, d_model]`, to the tap. A model that applies its head only to
    /// the last position may pass only that position, `seq = 1`, unless
    /// [`wants_all_positions`](Self::wants_all_positions) returns true.
    ///
    /// Sites that are not wanted are ignored. Invalid states are reported when the tap is asked for its result, so
    /// the model need not handle them.
    fn record(&mut self, site: TapSite, hidden: &Tensor<3>);
}

/// A tap that records nothing, for a plain forward pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTap;

impl HiddenStateTap for NoTap {
    fn wants(&self, _site: TapSite) -> bool {
        false
    }

    fn record(&mut self, _site: TapSite, _hidden: &Tensor<3>) {}
}

/// The states that one forward pass recorded at two sites.
#[derive(Debug)]
struct Pair {
    sites: [TapSite; 2],
    seen: [Option<Tensor<2>>; 2],
    twice: Option<TapSite>,
}

impl Pair {
    fn new(shallow: TapSite, deep: TapSite) -> Self {
        Self { sites: [shallow, deep], seen: [None, None], twice: None }
    }

    fn wants(&self, site: TapSite) -> bool {
        self.sites.contains(&site)
    }

    /// Stores `cut(hidden)` for a wanted site. If `cut` returns `None`, because the state has no positions or rows,
    /// the site stays unrecorded, which [`take`](Self::take) reports.
    fn record(
        &mut self,
        site: TapSite,
        hidden: &Tensor<3>,
        cut: impl Fn(&Tensor<3>) -> Option<Tensor<2>>,
    ) {
        for (wanted, seen) in self.sites.iter().zip(&mut self.seen) {
            if *wanted != site {
                continue;
            }
            if seen.is_some() {
                self.twice = Some(site);
            }
            if let Some(state) = cut(hidden) {
                *seen = Some(state);
            }
        }
    }

    /// Takes the shallow and the deep state of the pass and leaves the pair empty.
    fn take(&mut self) -> Result<[Tensor<2>; 2], HiddenError> {
        let seen = std::mem::take(&mut self.seen);
        if let Some(site) = self.twice.take() {
            return Err(HiddenError::SiteRecordedTwice { site });
        }
        match seen {
            [Some(shallow), Some(deep)] => Ok([shallow, deep]),
            [shallow, _] => {
                let site = self.sites[usize::from(shallow.is_some())];
                Err(HiddenError::SiteNotRecorded { site })
            }
        }
    }
}

/// Keeps the last position of two sites: the shallow and the deep hidden state of a step.
///
/// The default sites are the paper's: after the first block, and the input of the LM head.
#[derive(Debug)]
pub struct PairTap(Pair);

impl Default for PairTap {
    fn default() -> Self {
        Self::new(TapSite::AfterBlock(0), TapSite::HeadInput)
    }
}

impl PairTap {
    /// Creates a tap for the sites `shallow` and `deep`.
    pub fn new(shallow: TapSite, deep: TapSite) -> Self {
        Self(Pair::new(shallow, deep))
    }

    /// Takes the states of the last forward pass and leaves the tap empty.
    ///
    /// # Errors
    ///
    /// [`HiddenError::SiteNotRecorded`] or [`HiddenError::SiteRecordedTwice`] when the model did not call `record`
    /// exactly once per site, and any error of [`HiddenStates::new`].
    pub fn take(&mut self) -> Result<HiddenStates, HiddenError> {
        let [shallow, deep] = self.0.take()?;
        HiddenStates::new(shallow, deep)
    }
}

impl HiddenStateTap for PairTap {
    fn wants(&self, site: TapSite) -> bool {
        self.0.wants(site)
    }

    fn record(&mut self, site: TapSite, hidden: &Tensor<3>) {
        self.0.record(site, hidden, |hidden| {
            let [rows, seq, width] = hidden.dims();
            let last = seq.checked_sub(1)?;
            Some(hidden.clone().slice([0..rows, last..seq, 0..width]).reshape([rows, width]))
        });
    }
}

/// Keeps every position of two sites: the shallow and the deep hidden states of a whole prompt.
///
/// A prompt may be read in several forward passes; call [`end_pass`](Self::end_pass) after each. Only the first row
/// of a batch is kept: rows that read the same prompt are copies of each other.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use esamp::{CausalLm, SequenceTap, testing::TinyLm};
///
/// let device = Device::flex();
/// let model = TinyLm::new(1, &device);
/// let (mut cache, mut tap) = (model.new_cache(), SequenceTap::default());
/// for chunk in [[3, 1, 4], [1, 5, 9]] {
///     let tokens = Tensor::<1, Int>::from_data(chunk, &device).reshape([1, 3]);
///     model.forward(tokens, &mut cache, &mut tap)?;
///     tap.end_pass(3)?;
/// }
/// assert_eq!(tap.take()?.rows(), 6);
/// # Ok::<(), esamp::errors::StepError>(())
/// ```
#[derive(Debug)]
pub struct SequenceTap {
    /// The current pass.
    pass: Pair,
    /// The states of the completed passes.
    kept: [Vec<Tensor<2>>; 2],
}

impl Default for SequenceTap {
    fn default() -> Self {
        Self::new(TapSite::AfterBlock(0), TapSite::HeadInput)
    }
}

impl SequenceTap {
    /// Creates a tap for the sites `shallow` and `deep`.
    pub fn new(shallow: TapSite, deep: TapSite) -> Self {
        Self { pass: Pair::new(shallow, deep), kept: [vec![], vec![]] }
    }

    /// Ends a forward pass over `positions` tokens per row and keeps its states. On an error, nothing of the pass is
    /// kept.
    ///
    /// # Errors
    ///
    /// [`HiddenError::SiteNotRecorded`] or [`HiddenError::SiteRecordedTwice`] when the model did not call `record`
    /// exactly once per site; [`HiddenError::Positions`] when it recorded a different number of positions, for example
    /// because it applies its final norm only to the last one.
    pub fn end_pass(&mut self, positions: usize) -> Result<(), HiddenError> {
        let seen = self.pass.take()?;
        for (&site, states) in self.pass.sites.iter().zip(&seen) {
            let got = states.dims()[0];
            if got != positions {
                return Err(HiddenError::Positions { site, expected: positions, got });
            }
        }
        for (kept, states) in self.kept.iter_mut().zip(seen) {
            kept.push(states);
        }
        Ok(())
    }

    /// Takes the states of all passes, one row per position, and leaves the tap empty.
    ///
    /// # Errors
    ///
    /// [`HiddenError::SiteNotRecorded`] when no pass has ended, and any error of [`HiddenStates::new`].
    pub fn take(&mut self) -> Result<HiddenStates, HiddenError> {
        let [shallow, deep] = std::mem::take(&mut self.kept);
        if shallow.is_empty() {
            return Err(HiddenError::SiteNotRecorded { site: self.pass.sites[0] });
        }
        HiddenStates::new(Tensor::cat(shallow, 0), Tensor::cat(deep, 0))
    }
}

impl HiddenStateTap for SequenceTap {
    fn wants(&self, site: TapSite) -> bool {
        self.pass.wants(site)
    }

    fn wants_all_positions(&self) -> bool {
        true
    }

    fn record(&mut self, site: TapSite, hidden: &Tensor<3>) {
        self.pass.record(site, hidden, |hidden| {
            let [rows, positions, width] = hidden.dims();
            let first = || hidden.clone().slice([0..1, 0..positions, 0..width]);
            (rows > 0 && positions > 0).then(|| first().reshape([positions, width]))
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn state(width: usize) -> Tensor<3> {
        Tensor::ones([2, 3, width], &Device::flex())
    }

    #[test]
    fn the_last_position_of_both_sites() {
        let device = Device::flex();
        let numbers = Tensor::<1>::from_data([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &device);
        let states = numbers.reshape([2, 3, 1]);
        let mut tap = PairTap::default();
        tap.record(TapSite::AfterBlock(0), &states);
        tap.record(TapSite::AfterBlock(1), &states); // not a wanted site
        tap.record(TapSite::HeadInput, &(states * 10.0));
        let hidden = tap.take().unwrap();
        let numbers = |t: &Tensor<2>| -> Vec<f32> { t.clone().into_data().try_into_vec().unwrap() };
        assert_eq!(numbers(hidden.shallow()), [2.0, 5.0]);
        assert_eq!(numbers(hidden.deep()), [20.0, 50.0]);
    }

    #[test]
    fn a_site_that_is_missing_or_recorded_twice_is_an_error() {
        let mut tap = PairTap::default();
        let wording = |tap: &mut PairTap| tap.take().unwrap_err().to_string();
        assert_eq!(
            wording(&mut tap),
            "tap site AfterBlock(0): expected one `record` in the forward pass, got none"
        );
        tap.record(TapSite::AfterBlock(0), &state(4));
        assert_eq!(
            wording(&mut tap),
            "tap site HeadInput: expected one `record` in the forward pass, got none"
        );
        for _ in 0..2 {
            tap.record(TapSite::AfterBlock(0), &state(4));
        }
        tap.record(TapSite::HeadInput, &state(4));
        assert_eq!(
            wording(&mut tap),
            "tap site AfterBlock(0): expected one `record` in the forward pass, got more (is the tap emptied \
             after each?)"
        );
        tap.record(TapSite::AfterBlock(0), &state(4));
        tap.record(TapSite::HeadInput, &state(5));
        assert_eq!(wording(&mut tap), "deep hidden state: expected shape [2, 4], got [2, 5]");
        tap.record(TapSite::AfterBlock(0), &Tensor::zeros([2, 0, 4], &Device::flex()));
        tap.record(TapSite::HeadInput, &state(4));
        assert!(wording(&mut tap).contains("got none"), "no position, no state");
    }

    #[test]
    fn a_sequence_tap_keeps_the_positions_of_all_passes_in_order() {
        let device = Device::flex();
        let numbers = |t: &Tensor<2>| -> Vec<f32> { t.clone().into_data().try_into_vec().unwrap() };
        let mut tap = SequenceTap::default();
        for (from, seq) in [(0, 3), (3, 1), (4, 2)] {
            // Two rows that read the same prompt. The second is offset by 100 so that using it would fail the test.
            let row = |offset: usize| (from..from + seq).map(move |at| (at + offset) as f32);
            let states: Vec<f32> = row(0).chain(row(100)).collect();
            let states = Tensor::<1>::from_data(states.as_slice(), &device).reshape([2, seq, 1]);
            tap.record(TapSite::AfterBlock(0), &states);
            tap.record(TapSite::AfterBlock(1), &states);
            tap.record(TapSite::HeadInput, &(states * -1.0));
            tap.end_pass(seq).unwrap();
        }
        let hidden = tap.take().unwrap();
        assert_eq!(numbers(hidden.shallow()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(numbers(hidden.deep()), [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]);
        assert!(tap.take().is_err(), "it is empty again");
    }

    #[test]
    fn a_model_that_norms_its_last_position_only_is_told_what_to_do() {
        let mut tap = SequenceTap::default();
        let last = Tensor::<3>::ones([2, 1, 4], &Device::flex());
        tap.record(TapSite::AfterBlock(0), &state(4));
        tap.record(TapSite::HeadInput, &last);
        assert_eq!(
            tap.end_pass(3).unwrap_err().to_string(),
            "tap site HeadInput: expected the states of 3 positions, got 1 (a model that norms its last position only \
             must do so for all of them when `HiddenStateTap::wants_all_positions` says so)"
        );
        tap.record(TapSite::AfterBlock(0), &state(4));
        let missing = "tap site HeadInput: expected one `record` in the forward pass, got none";
        assert_eq!(tap.end_pass(3).unwrap_err().to_string(), missing);
        for _ in 0..2 {
            tap.record(TapSite::HeadInput, &state(4));
        }
        assert!(matches!(tap.end_pass(3), Err(HiddenError::SiteRecordedTwice { .. })));
        assert!(matches!(tap.take(), Err(HiddenError::SiteNotRecorded { .. })), "no pass was kept");
        assert!(!PairTap::default().wants_all_positions() && !NoTap.wants_all_positions());
    }
}
