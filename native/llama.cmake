# Read behind `project(llama_cpp)`: llama-cpp-python builds llama.cpp's library for programs too, half of the whole, which Sordino
# does not use. A plain variable, as the cached one of this name is overwritten.
set(LLAMA_BUILD_COMMON OFF)
