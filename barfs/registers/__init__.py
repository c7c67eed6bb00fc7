# SPDX-License-Identifier: MIT
"""Registers by name: descriptions of register maps, and what they say about an access.

    names, children, model     the facts; a map is a tree of blocks, registers and fields
    places                     RegisterMap: paths, patterns, files, what lies at an offset
    fields                     numbers and texts of fields; how to write one and no other
    sightings                  what accesses that were seen say of registers
    packed                     a map as bytes, of which a lookup decodes what it needs
    portable                   a map as JSON, for files that travel
    systemrdl, ipxact, svd, litex     a description becomes a map (with `report`: its errors)
    compiler, apart, cache     any description, by its suffix; each is compiled once, elsewhere
    shipped                    maps that barfs knows, by class and ids; configuration space
    find                       which of all these a device has

A mount needs `find.parse_choice`, `find.find_maps` and `find.user_folders`, and gets for each
region a `shipped.MapSource`, whose `load` may wait for the device.
"""
