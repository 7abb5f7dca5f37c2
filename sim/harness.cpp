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

constexpr size_t BUS_BYTES = sizeof(Model::m_axi_rdata);
constexpr size_t STROBE_BYTES = (BUS_BYTES + 7) / 8;
constexpr int64_t NEVER = -(int64_t{1} << 40);
constexpr int OKAY = 0, DECODE_ERROR = 3;
constexpr int64_t HOST_PATIENCE = 10000;  // cycles for one AXI4-Lite transfer

void report(const char* kind, uint64_t a, int64_t b) {
    std::printf("%s %llu %lld\n", kind, static_cast<unsigned long long>(a), static_cast<long long>(b));
}

// A DRAM behind an AXI4 slave port; arch/memory.py states its timing.
class Memory {
public:
    int64_t latency = 1, interval = 1, refresh = 0, period = 1, origin = 0;
    Bytes data;
    std::vector<std::pair<uint64_t, uint64_t>> allowed;  // first address, end

    void stalls(int permille, uint64_t seed) {
        m_permille = permille;
        m_random.seed(seed);
    }

    // Outputs of cycle `c`.
    void drive(Model& top, int64_t c) {
        top.m_axi_arready = !stalled();
        top.m_axi_awready = !stalled();
        top.m_axi_wready = c >= m_last_w + interval && !refreshing(c) && !stalled();
        if (!top.m_axi_rvalid && !m_reads.empty()) {
            Read& burst = m_reads.front();
            if (c >= std::max({burst.eligible, m_presented + interval, m_read_accepted + 1}) && !refreshing(c) && !stalled()) {
                bool inside = burst.address + BUS_BYTES <= data.size();
                if (inside) std::memcpy(&top.m_axi_rdata, &data[burst.address], BUS_BYTES);
                top.m_axi_rvalid = 1;
                top.m_axi_rid = burst.id;
                top.m_axi_rresp = inside ? OKAY : DECODE_ERROR;
                top.m_axi_rlast = burst.beats == 1;
                m_presented = c;
            }
        }
        if (!top.m_axi_bvalid && !m_responses.empty()) {
            const Response& response = m_responses.front();
            if (c >= std::max(response.from, m_b_accepted + 1) && !refreshing(c) && !stalled()) {
                top.m_axi_bvalid = 1;
                top.m_axi_bid = response.id;
                top.m_axi_bresp = response.code;
            }
        }
    }

    // Handshakes of cycle `c`; `next` will be the inputs after its edge.
    void sample(Model& top, int64_t c) {
        check(top, c);
        m_drop_r = m_drop_b = false;
        if (top.m_axi_rvalid && top.m_axi_rready) {
            m_read_accepted = c;
            m_drop_r = true;
            Read& burst = m_reads.front();
            burst.address += BUS_BYTES;
            if (--burst.beats == 0) m_reads.pop_front();
        }
        if (top.m_axi_bvalid && top.m_axi_bready) {
            m_b_accepted = c;
            m_drop_b = true;
            m_responses.pop_front();
        }
        if (top.m_axi_arvalid && top.m_axi_arready)
            m_reads.push_back({top.m_axi_araddr, top.m_axi_arlen + 1, c + latency, top.m_axi_arid});
        if (top.m_axi_awvalid && top.m_axi_awready)
            m_writes.push_back({top.m_axi_awaddr, top.m_axi_awlen + 1, c, top.m_axi_awid, OKAY});
        if (top.m_axi_wvalid && top.m_axi_wready) {
            m_last_w = c;
            Beat beat{c, top.m_axi_wlast != 0, {}, {}};
            std::memcpy(beat.bytes, &top.m_axi_wdata, BUS_BYTES);
            std::memcpy(beat.strobe, &top.m_axi_wstrb, STROBE_BYTES);
            m_beats.push_back(beat);
        }
        while (!m_writes.empty() && !m_beats.empty()) store();
    }

    // Lowers what was accepted in the cycle just sampled; after the edge.
    void settle(Model& top) {
        if (m_drop_r) top.m_axi_rvalid = 0;
        if (m_drop_b) top.m_axi_bvalid = 0;
    }

private:
    struct Read { uint64_t address; int beats; int64_t eligible; int id; };
    struct Write { uint64_t address; int beats; int64_t accepted; int id; int code; };
    struct Beat { int64_t cycle; bool last; uint8_t bytes[BUS_BYTES]; uint8_t strobe[STROBE_BYTES]; };
    struct Response { int64_t from; int id; int code; };

    void store() {
        Write& burst = m_writes.front();
        const Beat& beat = m_beats.front();
        bool inside = burst.address + BUS_BYTES <= data.size();
        if (!inside) burst.code = DECODE_ERROR;
        for (size_t i = 0; i < BUS_BYTES; ++i) {
            if (!(beat.strobe[i / 8] >> (i % 8) & 1)) continue;
            uint64_t address = burst.address + i;
            bool legal = inside && std::any_of(allowed.begin(), allowed.end(), [&](const auto& range) {
                return range.first <= address && address < range.second;
            });
            if (legal) {
                data[address] = beat.bytes[i];
            } else {
                report("stray", address, beat.cycle);
                break;
            }
        }
        burst.address += BUS_BYTES;
        if ((--burst.beats == 0) != beat.last) report("protocol wlast", burst.address, beat.cycle);
        if (burst.beats == 0) {
            m_responses.push_back({std::max(beat.cycle + latency, burst.accepted + 1), burst.id, burst.code});
            m_writes.pop_front();
        }
        m_beats.pop_front();
    }

    // AXI rules: full-width INCR bursts inside 4 KiB; a valid stays, unchanged, until it is accepted.
    void check(Model& top, int64_t c) {
        burst("protocol ar", top.m_axi_arvalid, top.m_axi_arready, top.m_axi_araddr, top.m_axi_arlen,
              top.m_axi_arsize, top.m_axi_arburst, m_ar, c);
        burst("protocol aw", top.m_axi_awvalid, top.m_axi_awready, top.m_axi_awaddr, top.m_axi_awlen,
              top.m_axi_awsize, top.m_axi_awburst, m_aw, c);
        bool changed = !top.m_axi_wvalid || std::memcmp(m_w, &top.m_axi_wdata, BUS_BYTES) != 0;
        if (m_w_waiting && changed) report("protocol w", 0, c);
        m_w_waiting = top.m_axi_wvalid && !top.m_axi_wready;
        if (m_w_waiting) std::memcpy(m_w, &top.m_axi_wdata, BUS_BYTES);
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

    bool refreshing(int64_t c) const { return (c - origin) % period >= period - refresh; }

    bool stalled() { return m_permille && static_cast<int>(m_random() % 1000) < m_permille; }

    int m_permille = 0;
    std::mt19937_64 m_random;
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
        memory.drive(top, m_cycle);
        top.clk = 0;
        top.eval();
        dump(10 * m_cycle);
        memory.sample(top, m_cycle);
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
        memory.settle(top);
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
