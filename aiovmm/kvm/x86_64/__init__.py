"""What KVM has on x86-64 alone: CPUID, model-specific registers, the state of a vCPU, page tables.

cpuid, msrs   what KVM offers of both, and how a vCPU gets them
state         registers as plain data; vcpustate reads and sets them
paging        whether a guest has run user space
probe         whether guest kernel code runs on the processor
"""
