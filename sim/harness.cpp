// Runs a verilated terrazzo_top against a DRAM with timing, as a job of host commands says. Driven by sim/rtl.py.
//
// usage: harness JOB_DIRECTORY
//   script       one command per line, numbers decimal:
//     memory LATENCY INTERVAL REFRESH PERIOD STALL_PERMILLE SEED   timing of the DRAM (arch/memory.py)
//     allow BASE SIZE     the machine may write here; `deny` forgets all such ranges
//     write ADDR VALUE    AXI4-Lite write
//     read ADDR           AXI4-Lite read, reported
//     until ADDR MASK MAX poll a register until (value & MASK) != 0, at most MAX cycles
//     irq MAX             wait for the irq port, at most MAX cycles
//     expect ADDR MASK V  read, reported; unless (value & MASK) == V go to the line `end`
//     wave FIRST LAST     cycles to record in wave.fst (builds with traces only)
//     note N              report N, for progress
//     end                 what follows is always executed
//   dram.bin     DRAM from address 0 on; dram.out is its content at the end
//   events.bin   records of int64 cycle, int32 code, int32 tag; code = engine * 2 + (1 if done), 8 run start, 9 run end
//   scratchpad.bin, weight.bin   records of on-chip writes (builds with taps only, sim/taps.py)
// Reports go to stdout, a line each. Cycle c ends with the rising edge at time 10 * c + 5 of the waveform.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "Vtop.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif
#ifdef TAPS
#include "Vtop__Dpi.h"
#include "taps.h"
#endif

namespace {

using Bytes = std::vector<uint8_t>;
using Model = Vtop;

// The masters' prefixes, as hw/axi.py names them.
#if AXI_PORTS == 1
#define AXI_FIRST(name) m_axi_##name
#define AXI_EACH(X) X(m_axi)
#elif AXI_PORTS == 2
#define AXI_FIRST(name) m_axi_0_##name
#define AXI_EACH(X) X(m_axi_0) X(m_axi_1)
#else
#define AXI_FIRST(name) m_axi_0_##name
#define AXI_EACH(X) X(m_axi_0) X(m_axi_1) X(m_axi_2) X(m_axi_3)
#endif
#define AXI_SIGNALS(X, p)                                                                                       \
    X(p, arvalid) X(p, arready) X(p, arid) X(p, araddr) X(p, arlen) X(p, arsize) X(p, arburst)                 \
    X(p, rvalid) X(p, rready) X(p, rid) X(p, rdata) X(p, rresp) X(p, rlast)                                    \
    X(p, awvalid) X(p, awready) X(p, awid) X(p, awaddr) X(p, awlen) X(p, awsize) X(p, awburst)                 \
    X(p, wvalid) X(p, wready) X(p, wdata) X(p, wstrb) X(p, wlast) X(p, bvalid) X(p, bready) X(p, bid) X(p, bresp)

constexpr size_t BUS_BYTES = sizeof(Model::AXI_FIRST(rdata));
constexpr size_t STROBE_BYTES = (BUS_BYTES + 7) / 8;
constexpr int64_t NEVER = -(int64_t{1} << 40);
constexpr int OKAY = 0, DECODE_ERROR = 3;
constexpr int64_t HOST_PATIENCE = 10000;  // cycles for one AXI4-Lite transfer

void report(const char* kind, uint64_t a, int64_t b) {
    std::printf("%s %llu %lld\n", kind, static_cast<unsigned long long>(a), static_cast<long long>(b));
}

// A DRAM; arch/memory.py states its timing.
class Memory {
public:
    int64_t latency = 1, interval = 1, refresh = 0, period = 1, origin = 0;
    Bytes data;
    std::vector<std::pair<uint64_t, uint64_t>> allowed;  // first address, end

    void stalls(int permille, uint64_t seed) {
        m_permille = permille;
        m_random.seed(seed);
    }

    bool refreshing(int64_t c) const { return (c - origin) % period >= period - refresh; }

    bool stalled() { return m_permille && static_cast<int>(m_random() % 1000) < m_permille; }

private:
    int m_permille = 0;
    std::mt19937_64 m_random;
};

// Signals of one of the machine's masters.
struct Master {
#define AXI_MEMBER(p, name) std::remove_reference_t<decltype(Model::AXI_FIRST(name))>& name;
    AXI_SIGNALS(AXI_MEMBER, first)
};

// An AXI4 slave port of the DRAM.
class Port {
public:
    Port(Memory& memory, Master master) : m_memory(memory), m_axi(master) {}

    // Outputs of cycle `c`.
    void drive(int64_t c) {
        m_axi.arready = !m_memory.stalled();
        m_axi.awready = !m_memory.stalled();
        m_axi.wready = c >= m_last_w + m_memory.interval && !m_memory.refreshing(c) && !m_memory.stalled();
        if (!m_axi.rvalid && !m_reads.empty()) {
            Read& burst = m_reads.front();
            int64_t from = std::max({burst.eligible, m_presented + m_memory.interval, m_read_accepted + 1});
            if (c >= from && !m_memory.refreshing(c) && !m_memory.stalled()) {
                bool inside = burst.address + BUS_BYTES <= m_memory.data.size();
                if (inside) std::memcpy(&m_axi.rdata, &m_memory.data[burst.address], BUS_BYTES);
                m_axi.rvalid = 1;
                m_axi.rid = burst.id;
                m_axi.rresp = inside ? OKAY : DECODE_ERROR;
                m_axi.rlast = burst.beats == 1;
                m_presented = c;
            }
        }
        if (!m_axi.bvalid && !m_responses.empty()) {
            const Response& response = m_responses.front();
            int64_t from = std::max(response.from, m_b_accepted + 1);
            if (c >= from && !m_memory.refreshing(c) && !m_memory.stalled()) {
                m_axi.bvalid = 1;
                m_axi.bid = response.id;
                m_axi.bresp = response.code;
            }
        }
    }

    // Handshakes of cycle `c`; `next` will be the inputs after its edge.
    void sample(int64_t c) {
        check(c);
        m_drop_r = m_drop_b = false;
        if (m_axi.rvalid && m_axi.rready) {
            m_read_accepted = c;
            m_drop_r = true;
            Read& burst = m_reads.front();
            burst.address += BUS_BYTES;
            if (--burst.beats == 0) m_reads.pop_front();
        }
        if (m_axi.bvalid && m_axi.bready) {
            m_b_accepted = c;
            m_drop_b = true;
            m_responses.pop_front();
        }
        if (m_axi.arvalid && m_axi.arready)
            m_reads.push_back({m_axi.araddr, m_axi.arlen + 1, c + m_memory.latency, m_axi.arid});
        if (m_axi.awvalid && m_axi.awready)
            m_writes.push_back({m_axi.awaddr, m_axi.awlen + 1, c, m_axi.awid, OKAY});
        if (m_axi.wvalid && m_axi.wready) {
            m_last_w = c;
            Beat beat{c, m_axi.wlast != 0, {}, {}};
            std::memcpy(beat.bytes, &m_axi.wdata, BUS_BYTES);
            std::memcpy(beat.strobe, &m_axi.wstrb, STROBE_BYTES);
            m_beats.push_back(beat);
        }
        while (!m_writes.empty() && !m_beats.empty()) store();
    }

    // Lowers what was accepted in the cycle just sampled; after the edge.
    void settle() {
        if (m_drop_r) m_axi.rvalid = 0;
        if (m_drop_b) m_axi.bvalid = 0;
    }

private:
    struct Read { uint64_t address; int beats; int64_t eligible; int id; };
    struct Write { uint64_t address; int beats; int64_t accepted; int id; int code; };
    struct Beat { int64_t cycle; bool last; uint8_t bytes[BUS_BYTES]; uint8_t strobe[STROBE_BYTES]; };
    struct Response { int64_t from; int id; int code; };

    void store() {
        Write& burst = m_writes.front();
        const Beat& beat = m_beats.front();
        bool inside = burst.address + BUS_BYTES <= m_memory.data.size();
        if (!inside) burst.code = DECODE_ERROR;
        for (size_t i = 0; i < BUS_BYTES; ++i) {
            if (!(beat.strobe[i / 8] >> (i % 8) & 1)) continue;
            uint64_t address = burst.address + i;
            const auto& allowed = m_memory.allowed;
            bool legal = inside && std::any_of(allowed.begin(), allowed.end(), [&](const auto& range) {
                return range.first <= address && address < range.second;
            });
            if (legal) {
                m_memory.data[address] = beat.bytes[i];
            } else {
                report("stray", address, beat.cycle);
                break;
            }
        }
        burst.address += BUS_BYTES;
        if ((--burst.beats == 0) != beat.last) report("protocol wlast", burst.address, beat.cycle);
        if (burst.beats == 0) {
            m_responses.push_back({std::max(beat.cycle + m_memory.latency, burst.accepted + 1), burst.id, burst.code});
            m_writes.pop_front();
        }
        m_beats.pop_front();
    }

    // AXI rules: full-width INCR bursts inside 4 KiB; a valid stays, unchanged, until it is accepted.
    void check(int64_t c) {
        burst("protocol ar", m_axi.arvalid, m_axi.arready, m_axi.araddr, m_axi.arlen, m_axi.arsize, m_axi.arburst, m_ar,
              c);
        burst("protocol aw", m_axi.awvalid, m_axi.awready, m_axi.awaddr, m_axi.awlen, m_axi.awsize, m_axi.awburst, m_aw,
              c);
        bool changed = !m_axi.wvalid || std::memcmp(m_w, &m_axi.wdata, BUS_BYTES) != 0;
        if (m_w_waiting && changed) report("protocol w", 0, c);
        m_w_waiting = m_axi.wvalid && !m_axi.wready;
        if (m_w_waiting) std::memcpy(m_w, &m_axi.wdata, BUS_BYTES);
    }

    struct Waiting { bool waiting = false; uint64_t address = 0; int length = 0; };

    static void burst(const char* kind, bool valid, bool ready, uint64_t address, int length, int size, int type,
                      Waiting& before, int64_t c) {
        if (before.waiting && !(valid && address == before.address && length == before.length))
            report(kind, before.address, c);
        before = {valid && !ready, address, length};
        if (!(valid && ready)) return;
        uint64_t end = address + (length + 1) * BUS_BYTES - 1;
        if ((size_t{1} << size) != BUS_BYTES || type != 1 || address % BUS_BYTES || address >> 12 != end >> 12)
            report(kind, address, c);
    }

    Memory& m_memory;
    Master m_axi;
    std::deque<Read> m_reads;
    std::deque<Write> m_writes;
    std::deque<Beat> m_beats;
    std::deque<Response> m_responses;
    int64_t m_presented = NEVER, m_read_accepted = NEVER, m_last_w = NEVER, m_b_accepted = NEVER;
    bool m_drop_r = false, m_drop_b = false;
    Waiting m_ar, m_aw;
    bool m_w_waiting = false;
    uint8_t m_w[BUS_BYTES] = {};
};

template <typename T>
void put(std::ofstream& file, const T* values, size_t count = 1) {
    file.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(T)));
}

#ifdef TAPS
// Called from the taps in the Verilog, at the edge that ends `cycle`.
struct TapLog {
    std::ofstream scratchpad, weight;
    int64_t cycle = 0;
} tap_log;
#endif

// Trace ports of the top.
class Log {
public:
    explicit Log(const std::string& directory) : m_events(directory + "/events.bin", std::ios::binary) {
#ifdef TAPS
        tap_log.scratchpad.open(directory + "/scratchpad.bin", std::ios::binary);
        tap_log.weight.open(directory + "/weight.bin", std::ios::binary);
#endif
    }

    void sample(const Model& top, int64_t c) {
        if (top.trace_run_start) event(c, 8, 0);
        engine(c, 0, top.trace_load_start, top.trace_load_start_tag, top.trace_load_done, top.trace_load_done_tag);
        engine(c, 2, top.trace_matrix_start, top.trace_matrix_start_tag, top.trace_matrix_done,
               top.trace_matrix_done_tag);
        engine(c, 4, top.trace_vector_start, top.trace_vector_start_tag, top.trace_vector_done,
               top.trace_vector_done_tag);
        engine(c, 6, top.trace_store_start, top.trace_store_start_tag, top.trace_store_done,
               top.trace_store_done_tag);
        if (top.trace_run_end) event(c, 9, 0);
#ifdef TAPS
        tap_log.cycle = c;
#endif
    }

private:
    void engine(int64_t c, int code, bool start, int start_tag, bool done, int done_tag) {
        if (start) event(c, code, start_tag);
        if (done) event(c, code + 1, done_tag);
    }

    void event(int64_t c, int32_t code, int32_t tag) {
        put(m_events, &c);
        put(m_events, &code);
        put(m_events, &tag);
    }

    std::ofstream m_events;
};

class Simulation {
public:
    Memory memory;
    int64_t wave_first = 0, wave_last = -1;

    explicit Simulation(const std::string& directory)
        : m_context(new VerilatedContext), m_top(new Model(m_context.get())), m_log(directory) {
#if VM_TRACE_FST
        m_context->traceEverOn(true);
        m_top->trace(&m_wave, 99);
        m_wave.open((directory + "/wave.fst").c_str());
#endif
        Model& top = *m_top;
#define AXI_REFERENCE(p, name) top.p##_##name,
#define AXI_PORT(p) m_ports.emplace_back(memory, Master{AXI_SIGNALS(AXI_REFERENCE, p)});
        AXI_EACH(AXI_PORT)
        m_top->rst = 1;
        for (int i = 0; i < 4; ++i) tick();
        m_top->rst = 0;
    }

    ~Simulation() {
#if VM_TRACE_FST
        m_wave.close();
#endif
        m_top->final();
    }

    int64_t cycle() const { return m_cycle; }
    bool irq() const { return m_irq; }

    void tick() {
        Model& top = *m_top;
        for (Port& port : m_ports) port.drive(m_cycle);
        top.clk = 0;
        top.eval();
        dump(10 * m_cycle);
        for (Port& port : m_ports) port.sample(m_cycle);
        m_log.sample(top, m_cycle);
        if (top.trace_run_start) memory.origin = m_cycle;
        m_irq = top.irq;
        m_axil_aw = top.s_axil_awvalid && top.s_axil_awready;
        m_axil_w = top.s_axil_wvalid && top.s_axil_wready;
        m_axil_b = top.s_axil_bvalid && top.s_axil_bready;
        m_axil_ar = top.s_axil_arvalid && top.s_axil_arready;
        m_axil_r = top.s_axil_rvalid && top.s_axil_rready;
        m_axil_rdata = top.s_axil_rdata;
        m_axil_code = m_axil_b ? top.s_axil_bresp : top.s_axil_rresp;
        top.clk = 1;
        top.eval();
        dump(10 * m_cycle + 5);
        for (Port& port : m_ports) port.settle();
        ++m_cycle;
    }

    void write(uint32_t address, uint32_t value) {
        Model& top = *m_top;
        top.s_axil_awaddr = address;
        top.s_axil_wdata = value;
        top.s_axil_wstrb = 15;
        top.s_axil_awvalid = top.s_axil_wvalid = top.s_axil_bready = 1;
        transfer([&] {
            if (m_axil_aw) top.s_axil_awvalid = 0;
            if (m_axil_w) top.s_axil_wvalid = 0;
            return m_axil_b;
        });
        top.s_axil_bready = 0;
    }

    uint32_t read(uint32_t address) {
        Model& top = *m_top;
        top.s_axil_araddr = address;
        top.s_axil_arvalid = top.s_axil_rready = 1;
        transfer([&] {
            if (m_axil_ar) top.s_axil_arvalid = 0;
            return m_axil_r;
        });
        top.s_axil_rready = 0;
        return m_axil_rdata;
    }

private:
    template <typename Done>
    void transfer(Done done) {
        for (int64_t patience = HOST_PATIENCE; patience; --patience) {
            tick();
            if (!done()) continue;
            if (m_axil_code) report("protocol register response", m_axil_code, m_cycle);
            return;
        }
        report("hang", 0, m_cycle);
        std::fflush(stdout);
        std::exit(3);
    }

    void dump(uint64_t time) {
#if VM_TRACE_FST
        if (m_cycle >= wave_first && m_cycle <= wave_last) m_wave.dump(time);
#else
        (void)time;
#endif
    }

    std::unique_ptr<VerilatedContext> m_context;
    std::unique_ptr<Model> m_top;
    std::deque<Port> m_ports;
    Log m_log;
#if VM_TRACE_FST
    VerilatedFstC m_wave;
#endif
    int64_t m_cycle = 0;
    bool m_irq = false, m_axil_aw = false, m_axil_w = false, m_axil_b = false, m_axil_ar = false, m_axil_r = false;
    uint32_t m_axil_rdata = 0;
    int m_axil_code = 0;
};

// Executes one command; false if the script must go on at `end`.
bool execute(Simulation& simulation, const std::string& command, std::istringstream& arguments) {
    auto next = [&] {
        uint64_t value = 0;
        arguments >> value;
        return value;
    };
    if (command == "memory") {
        simulation.memory.latency = static_cast<int64_t>(next());
        simulation.memory.interval = static_cast<int64_t>(next());
        simulation.memory.refresh = static_cast<int64_t>(next());
        simulation.memory.period = static_cast<int64_t>(next());
        int permille = static_cast<int>(next());
        simulation.memory.stalls(permille, next());
    } else if (command == "allow") {
        uint64_t base = next();
        simulation.memory.allowed.emplace_back(base, base + next());
    } else if (command == "deny") {
        simulation.memory.allowed.clear();
    } else if (command == "write") {
        uint32_t address = static_cast<uint32_t>(next());
        simulation.write(address, static_cast<uint32_t>(next()));
    } else if (command == "read") {
        uint32_t address = static_cast<uint32_t>(next());
        report("read", address, simulation.read(address));
    } else if (command == "until") {
        uint32_t address = static_cast<uint32_t>(next()), mask = static_cast<uint32_t>(next());
        int64_t limit = simulation.cycle() + static_cast<int64_t>(next());
        while (!(simulation.read(address) & mask)) {
            if (simulation.cycle() < limit) continue;
            report("timeout", address, simulation.cycle());
            return false;
        }
    } else if (command == "irq") {
        int64_t limit = simulation.cycle() + static_cast<int64_t>(next());
        do {
            if (simulation.cycle() >= limit) {
                report("timeout", 0, simulation.cycle());
                return false;
            }
            simulation.tick();
        } while (!simulation.irq());
    } else if (command == "expect") {
        uint32_t address = static_cast<uint32_t>(next()), mask = static_cast<uint32_t>(next());
        uint32_t value = simulation.read(address);
        report("read", address, value);
        return (value & mask) == next();
    } else if (command == "wave") {
        simulation.wave_first = static_cast<int64_t>(next());
        simulation.wave_last = static_cast<int64_t>(next());
    } else if (command == "note") {
        report("note", next(), simulation.cycle());
        std::fflush(stdout);
    }
    return true;
}

}  // namespace

#ifdef TAPS
void terrazzo_tap_scratchpad(int engine, int row, const svBitVecVal* mask, const svBitVecVal* data) {
    int32_t head[] = {engine, row};
    put(tap_log.scratchpad, &tap_log.cycle);
    put(tap_log.scratchpad, head, 2);
    put(tap_log.scratchpad, mask, MASK_WORDS);
    put(tap_log.scratchpad, data, DATA_WORDS);
}

void terrazzo_tap_weight(int keys, int row, int part, int block, const svBitVecVal* data) {
    int32_t head[] = {keys, row, part, block};
    put(tap_log.weight, &tap_log.cycle);
    put(tap_log.weight, head, 4);
    put(tap_log.weight, data, VALUE_WORDS);
}
#endif

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s JOB_DIRECTORY\n", argv[0]);
        return 2;
    }
    std::string directory = argv[1];
    std::ifstream dram(directory + "/dram.bin", std::ios::binary), script(directory + "/script");
    if (!dram || !script) {
        std::fprintf(stderr, "%s: must hold script and dram.bin\n", argv[1]);
        return 2;
    }
    {
        Simulation simulation(directory);
        simulation.memory.data.assign(std::istreambuf_iterator<char>(dram), std::istreambuf_iterator<char>());
        bool skip = false;
        for (std::string line; std::getline(script, line);) {
            std::istringstream arguments(line);
            std::string command;
            arguments >> command;
            if (command == "end") skip = false;
            if (!skip) skip = !execute(simulation, command, arguments);
        }
        const Bytes& data = simulation.memory.data;
        std::ofstream out(directory + "/dram.out", std::ios::binary);
        put(out, data.data(), data.size());
        report("cycles", static_cast<uint64_t>(simulation.cycle()), 0);
    }
#ifdef TAPS
    tap_log.scratchpad.close();
    tap_log.weight.close();
#endif
    return 0;
}
