#include "console.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "check.h"

static bool quiet, mute, on_terminal, progress_drawn;

void console_open(bool be_quiet) {
    quiet = be_quiet || mute;
    on_terminal = !quiet && isatty(STDOUT_FILENO);
    progress_drawn = false;
}

void console_mute(void) {
    mute = quiet = true;
    on_terminal = false;
}

bool console_quiet(void) { return quiet; }

static int lost;   /* the first error of writing standard output */

static void flush_output(void) {
    if (fflush(stdout) != 0 && !lost) lost = errno;
}

void console_end(bool all) {
    flush_output();
    if (!lost && ferror(stdout)) lost = EIO;   /* its own error is not known any more */
    bool excused = lost == EPIPE || lost == EBADF;
    if (lost && (all || !excused)) die_machine("cannot write standard output: %s", strerror(lost));
}

static void say_line(const char *format, va_list arguments) {
    console_clear();
    vprintf(format, arguments);
    putchar('\n');
    flush_output();   /* through a pipe, lines appear as they are said */
}

void say(const char *format, ...) {
    va_list arguments;
    if (quiet) return;
    va_start(arguments, format);
    say_line(format, arguments);
    va_end(arguments);
}

void say_result(const char *format, ...) {
    va_list arguments;
    if (mute) return;
    va_start(arguments, format);
    say_line(format, arguments);
    va_end(arguments);
    console_end(true);
}

/* Columns of the terminal; a line as wide as the terminal would wrap and could not be redrawn. */
static int terminal_columns(void) {
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void console_progress(const char *what, int64_t done, int64_t total, double seconds_left) {
    enum { BAR = 30 };
    if (!on_terminal || total <= 0) return;
    double part = fmin(fmax((double)done / (double)total, 0), 1);
    char bar[BAR + 1];
    memset(bar, '.', BAR);
    memset(bar, '#', (size_t)(part * BAR));
    bar[BAR] = 0;
    char line[256];
    snprintf(line, sizeof line, "%s %lld/%lld [%s] %s left", what, (long long)done,
             (long long)total, bar, console_time(seconds_left));
    printf("\r%.*s\033[K", terminal_columns() - 1, line);   /* \033[K: clear the rest of the line */
    fflush(stdout);
    progress_drawn = true;
}

void console_clear(void) {
    if (!progress_drawn) return;
    fputs("\r\033[K", stdout);
    fflush(stdout);
    progress_drawn = false;
}

const char *console_time(double seconds) {
    static char text[32];
    if (!(seconds >= 0 && seconds < 1e9)) return "?:??";
    int whole = (int)lround(seconds), hours = whole / 3600, minutes = whole / 60 % 60;
    if (hours) snprintf(text, sizeof text, "%d:%02d:%02d", hours, minutes, whole % 60);
    else snprintf(text, sizeof text, "%d:%02d", minutes, whole % 60);
    return text;
}
