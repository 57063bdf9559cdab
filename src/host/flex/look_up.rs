//! Codes of four bits to numbers by a table in a register, on CPUs with AVX-512.
//!
//! A group has at most sixteen different numbers, as many as a vector has lanes. One instruction picks a number for each
//! lane, where a mask, a conversion and a product would take three.

#[cfg(target_arch = "x86_64")]
use std::any::Any;

use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::x86::V4;

/// The instruction set, if it can look up codes of `BITS` bits.
#[inline(always)]
pub(super) fn looks_up<S: Simd, const BITS: usize>(simd: S) -> Option<LookUp> {
    #[cfg(target_arch = "x86_64")]
    if BITS == 4 {
        return same(simd).map(LookUp);
    }
    let _ = simd;
    None
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct LookUp(V4);

#[cfg(target_arch = "x86_64")]
impl LookUp {
    /// The numbers of `table` at the lowest four bits of each code.
    #[inline(always)]
    pub(super) fn numbers<S: Simd>(self, codes: S::u32s, table: S::f32s) -> S::f32s {
        let found = || {
            let (codes, table): (pulp::u32x16, pulp::f32x16) = (same(codes)?, same(table)?);
            let found = self.0.avx512f._mm512_permutexvar_ps(pulp::cast(codes), pulp::cast(table));
            same(pulp::cast::<_, pulp::f32x16>(found))
        };
        // `S` is `V4`, because a `LookUp` is only made from it.
        found().unwrap_or(table)
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy, Debug)]
pub(super) enum LookUp {}

#[cfg(not(target_arch = "x86_64"))]
impl LookUp {
    pub(super) fn numbers<S: Simd>(self, _: S::u32s, _: S::f32s) -> S::f32s {
        match self {}
    }
}

/// The value as another type, if it is the same type. Decided when the generic function is compiled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn same<A: 'static, B: Copy + 'static>(value: A) -> Option<B> {
    (&value as &dyn Any).downcast_ref().copied()
}
