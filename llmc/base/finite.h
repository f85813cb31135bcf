/* Refuses to compile where the compiler may assume that no number is NaN or infinite (-Ofast,
   -ffast-math, -ffinite-math-only): isnan() and isfinite() are then constants, and every guard
   against a diverging run, a damaged weight or a bad reward is gone without a word. The Makefile
   puts this header before every C file (-include). */
#if defined __FAST_MATH__ || (defined __FINITE_MATH_ONLY__ && __FINITE_MATH_ONLY__)
#error "CFLAGS turn every NaN guard off: -O3, not -Ofast, -ffast-math or -ffinite-math-only"
#endif
