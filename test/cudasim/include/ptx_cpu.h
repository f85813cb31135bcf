#include "../device/ptx.h"
