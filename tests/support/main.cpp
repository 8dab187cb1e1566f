// Catch2 2 needs exactly one translation unit with its main; Catch2 3 links one.
#if __has_include(<catch2/catch_all.hpp>)
#else
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
