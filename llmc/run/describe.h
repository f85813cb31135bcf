/* What the person is told at start. */
#ifndef LLMC_DESCRIBE_H
#define LLMC_DESCRIBE_H

#include "session.h"

/* Prints what is learnt, by what, with which model, the batch arithmetic and the memory plan; warns
   of options whose values cannot have the effect that they name. */
void describe_session(const struct Session *session);

#endif
