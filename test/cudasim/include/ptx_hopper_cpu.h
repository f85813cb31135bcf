#include "../device/hopper.h"
