# All from the distribution's packages; newer versions work too. A host project that already has a target keeps its own.
foreach(dependency fmt:fmt::fmt TBB:TBB::tbb Threads:Threads::Threads Eigen3:Eigen3::Eigen
                   nlohmann_json:nlohmann_json::nlohmann_json SkaldPCRE2:SkaldPCRE2::SkaldPCRE2
                   SkaldUtf8proc:SkaldUtf8proc::SkaldUtf8proc)
  string(REGEX MATCH "^[^:]+" package ${dependency})
  string(REGEX REPLACE "^[^:]+:" "" target ${dependency})
  if(NOT TARGET ${target})
    find_package(${package} REQUIRED)
  endif()
endforeach()
