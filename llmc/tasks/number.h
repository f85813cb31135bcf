/* Numbers as people and models write them, found in a text and compared exactly.

       1,234   $5   -3.50   .5   1e3   1.5 \times 10^{3}   1/2   \frac{1}{2}   1\frac{1}{2}   50%

   Thousands may be set off as 1,234 or 1{,}234 or 1,\!234 or 1\,234. A number right after ^ or _ is
   an exponent or an index and no value, and so is one that is part of a word (x2). A minus behind a
   letter, a digit or a closing bracket is a difference and no sign. */
#ifndef LLMC_NUMBER_H
#define LLMC_NUMBER_H

#include <stdbool.h>
#include <stddef.h>

enum { MOST_DIGITS = 200 };   /* of a number that has a value; longer ones equal nothing */

/* digits x 10^exponent; neither end of the digits is a zero. No digits: zero. */
struct Decimal {
    char digits[MOST_DIGITS];
    int count, exponent;
};

struct Number {
    bool negative, percent;
    bool valued;                 /* false: too long, or a division by zero */
    struct Decimal above, below; /* above / below */
};

/* The number that a text answers with: what follows the last ####, or the last one in the last
   \boxed{...}, whichever mark comes later; without either, the last number of the text. `whole`:
   the text was not cut. In one that was, only an answer that is known to be complete counts: a
   closed \boxed{}, or a number behind #### that something follows. False: there is none. Any bytes,
   in time linear in the length. */
bool number_in(struct Number *out, const char *text, size_t length, bool whole);
/* Exactly equal as rationals: 0.50 = 1/2. Where one has a percent sign and the other not, 50% is
   both 50 and 0.5. */
bool number_equal(const struct Number *a, const struct Number *b);

/* The inside of the last \boxed{...} (or \fbox{...}) whose braces close, as a part of the text;
   NULL: there is none. */
const char *last_boxed(const char *text, size_t length, size_t *inside);

#endif
