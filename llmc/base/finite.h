/* Refuses to compile where the compiler may assume that no number is NaN or infinite (-Ofast,
   -ffast-math, -ffinite-math-only): isnan() and isfinite() are then constants, and every guard
   against a diverging run, a damaged weight or a bad reward is gone without a word. The Makefile
   puts this header before every C file (-include). */
#if defined __FAST_MATH__ || (defined __FINITE_MATH_ONLY__ && __FINITE_MATH_ONLY__)
#error "CFLAGS turn every NaN guard off: use -O3 in place of -Ofast, -ffast-math, -ffinite-math-only"
#endif
